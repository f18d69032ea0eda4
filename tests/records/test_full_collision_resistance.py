# SPDX-License-Identifier: GPL-3.0-or-later
"""The game of full collision resistance (Derler, Samelin, Slamanig, PKC 2020), played by adversaries with an Adapt oracle.

The adversary sees pk, opens hashes of its own, and lets the oracle adapt any hash to any message of its choice. It wins with evidence for a
pair (h, m*) that it neither opened nor asked for. No test can show that nobody wins; these show that what was published, however it is
replayed, mauled, mixed or taken as a trapdoor, wins nothing. Planted weaknesses show that the same adversaries do win where there is one.
"""

import itertools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest

from ledger.crypto import chameleon, groth16_native
from ledger.crypto.bn254 import ProofPoints
from ledger.crypto.chameleon import FIELD_ORDER
from ledger.crypto.chameleon_proof import PROOF_BYTES, check, proof_points, public_inputs
from tests.ledger.crypto.proof_kit import (
    KEY,
    PROVER,
    encoded,
    minus,
    plus,
    times,
    twisted_minus,
    twisted_plus,
    twisted_times,
)

Check = Callable[[bytes, bytes, bytes, bytes], bool]


class Published(NamedTuple):
    """What everybody can read on the chain."""

    chameleon_hash: bytes
    message: bytes
    evidence: bytes


class Game:
    """A victim with a trapdoor, who adapts on request, and the list of what was opened and asked for."""

    def __init__(self) -> None:
        self._trapdoor, self.public_key = chameleon.keygen(b"victim" + bytes(26))
        self.published: list[Published] = []
        self.opening = chameleon.draw_opening(b"record" + bytes(26))
        original = message("the record as it was written")
        self.hash = chameleon.hash_message(original, self.opening)
        self.published.append(Published(self.hash, original, self.opening))

    def adapt(self, chameleon_hash: bytes, digest: bytes) -> bytes:
        proof = PROVER.adapt(self._trapdoor, self.public_key, chameleon_hash, digest)
        self.published.append(Published(chameleon_hash, digest, proof))
        return proof

    def is_won_by(self, chameleon_hash: bytes, digest: bytes, evidence: bytes, judge: Check) -> bool:
        element = chameleon.message_element(digest)
        known = {(entry.chameleon_hash, chameleon.message_element(entry.message)) for entry in self.published}
        return (chameleon_hash, element) not in known and judge(self.public_key, chameleon_hash, digest, evidence)


def message(text: str) -> bytes:
    return text.encode().ljust(32, b".")


def honest_check(public_key: bytes, chameleon_hash: bytes, digest: bytes, evidence: bytes) -> bool:
    return check(KEY, public_key, chameleon_hash, digest, evidence)


@pytest.fixture(scope="module")
def game() -> Game:
    """The victim after some labels: of the record under attack, and of others."""
    played = Game()
    for text in ("labelled once", "labelled twice"):
        played.adapt(played.hash, message(text))
    other = chameleon.hash_message(message("another record"), chameleon.draw_opening(b"another" + bytes(25)))
    played.adapt(other, message("another label"))
    # A hash of the adversary's making, which nobody can open: its number is not the output of anything known.
    played.adapt(bytes(31) + b"\x07", message("label of a made-up hash"))
    return played


TARGET = message("what the adversary would write")


# ---------------------------------------------------------------- adversaries: each yields evidence for (game.hash, TARGET)


def proofs(game: Game) -> list[ProofPoints]:
    found = [proof_points(entry.evidence) for entry in game.published if len(entry.evidence) == PROOF_BYTES]
    return [proof for proof in found if proof is not None]


def replay(game: Game) -> Iterator[bytes]:
    """All that was ever published, as it is."""
    yield from (entry.evidence for entry in game.published)


def rerandomise(game: Game) -> Iterator[bytes]:
    """Other bytes of the same proofs, and signs changed."""
    delta = KEY.points.delta
    for proof, (factor, shift) in itertools.product(proofs(game), [(1, 1), (2, 0), (FIELD_ORDER - 1, 0), (3, 5)]):
        a, b, c = proof
        shifted = (
            twisted_times(twisted_plus(b, twisted_times(delta, shift)), factor) if shift else twisted_times(b, factor)
        )
        moved = plus(c, times(a, shift)) if shift else c
        yield encoded(ProofPoints(times(a, pow(factor, -1, FIELD_ORDER)), shifted, moved))
        yield encoded(ProofPoints(minus(a), b, c))
        yield encoded(ProofPoints(minus(a), twisted_minus(b), minus(c)))


def mix(game: Game) -> Iterator[bytes]:
    """Parts of several proofs together."""
    found = proofs(game)
    for first, second, third in itertools.product(found, found, found):
        yield encoded(ProofPoints(first.a, second.b, third.c))


def add_up(game: Game) -> Iterator[bytes]:
    """Sums of proofs: the equation is linear in C and in the public inputs, though not in the statement."""
    for first, second in itertools.combinations(proofs(game), 2):
        yield encoded(ProofPoints(plus(first.a, second.a), twisted_plus(first.b, second.b), plus(first.c, second.c)))
        yield encoded(ProofPoints(first.a, first.b, plus(first.c, second.c)))


def compensate(game: Game) -> Iterator[bytes]:
    """Change C by what the other message changes in the sum of the public inputs: right if γ and δ were one."""
    points = KEY.points
    for entry in game.published:
        proof = proof_points(entry.evidence)
        before = public_inputs(game.public_key, entry.chameleon_hash, entry.message)
        after = public_inputs(game.public_key, game.hash, TARGET)
        if proof is None or before is None or after is None:
            continue
        c = proof.c
        for old, new, point in zip(before, after, points.inputs[1:], strict=True):
            if old != new:
                c = plus(c, times(point, (old - new) % FIELD_ORDER))
        yield encoded(proof._replace(c=c))


def own_key(game: Game) -> Iterator[bytes]:
    """Proofs by a trapdoor of one's own, and by what is public taken for the victim's."""
    trapdoor, public_key = chameleon.keygen(b"adversary" + bytes(23))
    yield PROVER.adapt(trapdoor, public_key, game.hash, TARGET)
    yield game.public_key
    yield game.opening


def own_opening(game: Game) -> Iterator[bytes]:
    """A proof of the target under a hash of one's own, and its opening."""
    opening = chameleon.draw_opening(b"adversary" + bytes(23))
    hashed = chameleon.hash_message(TARGET, opening)
    yield PROVER.prove_opening(game.public_key, hashed, TARGET, opening)
    yield opening


ADVERSARIES = [replay, rerandomise, mix, add_up, compensate, own_key, own_opening]


@pytest.mark.parametrize("adversary", ADVERSARIES)
def test_published_labels_open_no_further_message(game: Game, adversary: Callable[[Game], Iterator[bytes]]) -> None:
    tried = 0
    for evidence in adversary(game):
        assert not game.is_won_by(game.hash, TARGET, evidence, honest_check)
        tried += 1
    assert tried


def test_labels_of_one_record_do_not_label_another(game: Game) -> None:
    """Every published pair of hash and message that was not asked for, with every published evidence."""
    hashes = {entry.chameleon_hash for entry in game.published}
    messages = {entry.message for entry in game.published}
    for chameleon_hash, digest, evidence in itertools.product(hashes, messages, [e.evidence for e in game.published]):
        assert not game.is_won_by(chameleon_hash, digest, evidence, honest_check)


def test_what_was_asked_for_does_verify(game: Game) -> None:
    """The judge is not simply deaf."""
    for entry in game.published:
        assert honest_check(game.public_key, entry.chameleon_hash, entry.message, entry.evidence)
        assert not game.is_won_by(entry.chameleon_hash, entry.message, entry.evidence, honest_check)


# ---------------------------------------------------------------- the adversaries win where there is a weakness


def test_replaying_wins_where_the_proof_does_not_cover_the_message(game: Game) -> None:
    def deaf(public_key: bytes, chameleon_hash: bytes, digest: bytes, evidence: bytes) -> bool:
        del digest
        return any(honest_check(public_key, chameleon_hash, entry.message, evidence) for entry in game.published)

    assert any(game.is_won_by(game.hash, TARGET, evidence, deaf) for evidence in replay(game))


def test_one_published_label_wins_where_the_set_up_was_left_unfinished(game: Game) -> None:
    """γ = δ: the compensated C is right. `VerifyingKey.decode` refuses such a key."""
    unfinished = KEY.points._replace(delta=KEY.points.gamma)
    equation = groth16_native.equation(unfinished)
    before = public_inputs(game.public_key, game.hash, message("labelled once"))
    after = public_inputs(game.public_key, game.hash, TARGET)
    assert equation is not None
    assert before is not None
    assert after is not None
    linear = unfinished.inputs[0]
    for number, point in zip(before, unfinished.inputs[1:], strict=True):
        linear = plus(linear, times(point, number))
    label = ProofPoints(unfinished.alpha, unfinished.beta, minus(linear))
    assert equation(before, label)
    assert not equation(after, label)
    changed = times(unfinished.inputs[3], (before[2] - after[2]) % FIELD_ORDER)
    assert equation(after, label._replace(c=plus(label.c, changed)))
