# SPDX-License-Identifier: GPL-3.0-or-later
"""A reputation in plain words, with the numbers of Algorithm 2."""

import textwrap
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from node.api.reputation_models import MinerReputation

UNIT = 10**9
_SHOWN_CHUNKS = 6


def amount(nano: int, digits: int = 6) -> str:
    """Return a number given in 10⁻⁹."""
    return f"{nano / UNIT:.{digits}f}"


def signed(nano: int, digits: int = 6) -> str:
    """Return a change given in 10⁻⁹, with its sign."""
    return f"{nano / UNIT:+.{digits}f}".replace("-", "−")


def counted(number: int, what: str) -> str:
    """Return "1 term", "2 terms"."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def paragraphs(found: "MinerReputation") -> dict[str, str]:
    """Return why a miner's reputation is what it is: titles and sentences."""
    result = (
        f"R = min(1, H · (Ext + f(x))) = min(1, {int(found.is_honest)} · ({amount(found.external_nano)} + "
        f"{amount(found.earned_nano)})) = {amount(found.reputation_nano)}."
    )
    return {
        "keyblocks": _mining(found),
        "terms": _leading(found),
        "earned": _earned(found),
        "external": f"Ext = {amount(found.external_nano)}, "
        + ("given by the genesis." if found.external_nano else "for the genesis does not name this miner."),
        "honesty": _honesty(found),
        "together": result,
    }


def causes(found: "MinerReputation") -> list[tuple[str, str, str]]:
    """Return what changed the reputation since the epoch before: cause, part of the change, words."""
    change = found.change
    if change is None:
        return []
    rows = []
    if change.chain_nano:
        words = f"regularity is judged over {counted(found.mining.chain_keyblocks, 'keyblock')} now, one more"
        rows.append(("longer chain", change.chain_nano, words))
    if change.keyblocks:
        rows.append(("keyblock", change.keyblocks_nano, "it mined the keyblock that began this epoch"))
    if change.terms:
        words = f"{counted(change.terms, 'term')} over, with {counted(change.microblocks, 'microblock')} in all"
        rows.append(("terms", change.terms_nano, words))
    if change.is_punished:
        rows.append(("offence", change.punishment_nano, "proof of misbehaviour took everything, for good"))
    return [(name, signed(nano, 9), words) for name, nano, words in rows]


def wrapped(title: str, text: str, width: int, margin: int) -> str:
    """Return a paragraph beside its title."""
    lines = textwrap.wrap(text, max(40, width - margin), break_long_words=False, break_on_hyphens=False)
    return "\n".join(f"{title if not index else '':<{margin}}{line}" for index, line in enumerate(lines))


def _mining(found: "MinerReputation") -> str:
    part = found.mining
    if not part.chain_keyblocks:
        return "No keyblock is pinned yet: y1 = 0."
    mined = f"Mined {part.keyblocks} of the chain's {counted(part.chain_keyblocks, 'keyblock')}"
    if not part.keyblocks:
        return f"{mined}: y1 = 0."
    newest = part.newest_chunks[-_SHOWN_CHUNKS:]
    older = "" if part.chunks == len(newest) else "…, "
    own = older + ", ".join(str(chunk.keyblocks) for chunk in newest)
    everybodys = older + ", ".join(str(chunk.chain_keyblocks) for chunk in newest)
    return (
        f"{mined}: mean_k = {part.keyblocks} / {part.chain_keyblocks} = {amount(part.mean_nano)}. In t = "
        f"{counted(part.chunks, 'chunk')} of c = {part.chunk_keyblocks} it found k_i = {own} of {everybodys}: irregular to "
        f"s_k = √(Σ (k_i / c − mean_k)² / t) = {amount(part.deviation_nano)} (0 is regular), so "
        f"y1 = mean_k / (1 + s_k) = {amount(part.y1_nano)}."
    )


def _leading(found: "MinerReputation") -> str:
    part = found.leading
    if not part.terms:
        return "Led no whole term yet: y2 = 1."
    room = part.terms * part.term_microblocks
    return (
        f"Led N = {counted(part.terms, 'term')} of up to m = {part.term_microblocks} microblocks, {part.mean_nano / UNIT:.1%} full: "
        f"{part.microblocks} of {room}, mean_m = {amount(part.mean_nano)}. Irregular to s_m = "
        f"√(Σ (m_j / m − mean_m)² / N) = {amount(part.deviation_nano)}, so y2 = mean_m / (1 + s_m) = {amount(part.y2_nano)}."
    ).replace("%", " %")


def _earned(found: "MinerReputation") -> str:
    mining, leading = found.mining, found.leading
    return (
        f"x = y1 · y2 · L = {amount(mining.y1_nano)} · {amount(leading.y2_nano)} · {mining.chain_keyblocks} = "
        f"{amount(found.x_nano, 3)} keyblocks that count. f(x) = ½ (1 + (x − a) / (λ + |x − a|)), with "
        f"a = {found.midpoint_keyblocks} and λ = {found.flatness_keyblocks}, is {amount(found.earned_nano)}."
    )


def _honesty(found: "MinerReputation") -> str:
    offence = found.offence
    if offence is None:
        return "H = 1: no proof of misbehaviour is on the chain."
    what = f"it signed what contradicts itself in epoch {offence.epoch}, round {offence.round}"
    if offence.contract_id is not None:
        what = f"it committed a wrong batch of its contract {offence.contract_id.hex()}"
    proof = f"{what}; microblock {offence.height} holds the proof, first reported by {offence.reporter.hex()}"
    if not found.is_honest:
        return f"H = 0, for good: {proof}."
    since = "since a later keyblock" if offence.is_punished else "from the next keyblock on"
    return f"H = 1 in this epoch, but 0 {since}, for good: {proof}."
