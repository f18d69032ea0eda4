# SPDX-License-Identifier: GPL-3.0-or-later
"""The index of all miners against the plain definition: everybody's R, sorted."""

import hashlib
from collections.abc import Mapping

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from consensus.committee import CommitteeMember
from consensus.reputation import after_keyblock, after_terms, ceiling_nano, reputation_nano
from consensus.standings import Standings, tie_break
from ledger.codec import decode, encode
from ledger.crypto.keys import address_of
from ledger.miners import MinerHistory, TermTally
from ledger.rules import REPUTATION_UNIT, ReputationRules

CAP = 8
MINERS = [bytes([2, index]) + bytes(31) for index in range(12)]
SMALL = ReputationRules(10, 5, 4)

RULES = st.builds(ReputationRules, st.integers(0, 60), st.integers(1, 60), st.integers(1, 12))
MINER = st.sampled_from(MINERS)
TERMS = st.dictionaries(MINER, st.lists(st.integers(0, CAP), min_size=1, max_size=3), max_size=3)
EPOCHS = st.lists(st.tuples(MINER, TERMS, st.sampled_from([None] * 9 + MINERS)), max_size=60)
"""What each epoch brings: who found the keyblock, which terms were finished, who was punished."""
EXTERNAL = st.dictionaries(MINER, st.sampled_from([0, 1, 5 * 10**8, REPUTATION_UNIT]), max_size=8)

EpochEvents = tuple[bytes, dict[bytes, list[int]], bytes | None]


def founding(external: Mapping[bytes, int]) -> dict[bytes, MinerHistory]:
    return {key: MinerHistory(external_nano=nano) for key, nano in external.items()}


def changes_of(
    histories: Mapping[bytes, MinerHistory], position: int, events: EpochEvents, rules: ReputationRules
) -> dict[bytes, MinerHistory]:
    """Return the histories that an epoch changes."""
    miner, terms, punished = events
    changed: dict[bytes, MinerHistory] = {}

    def of(key: bytes) -> MinerHistory:
        return changed.get(key, histories.get(key, MinerHistory()))

    for leader, counts in terms.items():
        changed[leader] = after_terms(of(leader), TermTally(len(counts), sum(counts), sum(m * m for m in counts)))
    if punished is not None:
        changed[punished] = msgspec.structs.replace(of(punished), is_honest=False)
    changed[miner] = after_keyblock(of(miner), position, rules)
    return changed


def full_sort(
    histories: Mapping[bytes, MinerHistory], keyblocks: int, rules: ReputationRules, size: int
) -> tuple[CommitteeMember, ...]:
    """The plain definition."""
    rows = []
    for key, history in histories.items():
        if history.is_honest and (history.keyblocks or history.external_nano):
            reputation = reputation_nano(history, keyblocks, CAP, rules)
            rows.append((-reputation, tie_break(key, reputation), key))
    return tuple(CommitteeMember(key, address_of(key), -negated) for negated, _, key in sorted(rows)[:size])


def grown(
    rules: ReputationRules, external: Mapping[bytes, int], epochs: list[EpochEvents]
) -> tuple[Standings, dict[bytes, MinerHistory]]:
    """Standings after so many epochs, and the histories that they must hold."""
    histories = founding(external)
    standings = Standings(rules, CAP, 0, histories.items())
    for position, events in enumerate(epochs):
        changes = changes_of(histories, position, events, rules)
        standings.apply(changes, position + 1)
        histories.update(changes)
    return standings, histories


@settings(max_examples=300)
@given(RULES, EXTERNAL, EPOCHS, st.integers(1, 13))
def test_r1_the_committee_is_what_a_full_sort_gives_after_every_epoch(
    rules: ReputationRules, external: dict[bytes, int], epochs: list[EpochEvents], size: int
) -> None:
    histories = founding(external)
    standings = Standings(rules, CAP, 0, histories.items())
    assert standings.committee(size) == full_sort(histories, 0, rules, size)
    for position, events in enumerate(epochs):
        changes = changes_of(histories, position, events, rules)
        tried = standings.trial(changes, position + 1).committee(size)
        standings.apply(changes, position + 1)
        histories.update(changes)
        assert standings.committee(size) == full_sort(histories, position + 1, rules, size) == tried


@settings(max_examples=100)
@given(RULES, EXTERNAL, EPOCHS, st.tuples(MINER, TERMS, st.none() | MINER))
def test_r5_a_trial_tells_what_would_be_and_changes_nothing(
    rules: ReputationRules, external: dict[bytes, int], epochs: list[EpochEvents], events: EpochEvents
) -> None:
    standings, histories = grown(rules, external, epochs)
    length = len(epochs)
    before = [standings.explain(key) for key in MINERS], standings.committee(12), standings.keyblocks
    changes = changes_of(histories, length, events, rules)
    trial = standings.trial(changes, length + 1)
    for key in MINERS:
        expected = reputation_nano({**histories, **changes}.get(key, MinerHistory()), length + 1, CAP, rules)
        assert trial.reputation_nano(key) == expected
    assert trial.committee(12) == full_sort({**histories, **changes}, length + 1, rules, 12)
    assert ([standings.explain(key) for key in MINERS], standings.committee(12), standings.keyblocks) == before
    assert {key: standings.history(key) for key in histories} == histories


@settings(max_examples=100)
@given(RULES, EXTERNAL, EPOCHS, EPOCHS)
def test_r4_standings_made_from_stored_histories_go_on_alike(
    rules: ReputationRules, external: dict[bytes, int], before: list[EpochEvents], after: list[EpochEvents]
) -> None:
    standings, histories = grown(rules, external, before)
    stored = [(key, decode(MinerHistory, encode(histories[key]), 256)) for key in sorted(histories)]
    restarted = Standings(rules, CAP, len(before), stored)
    for position, events in enumerate(after, len(before)):
        changes = changes_of(histories, position, events, rules)
        standings.apply(changes, position + 1)
        restarted.apply(changes, position + 1)
        histories.update(changes)
        assert restarted.committee(5) == standings.committee(5)
    assert [restarted.explain(key) for key in MINERS] == [standings.explain(key) for key in MINERS]


@settings(max_examples=300)
@given(RULES, st.data())
def test_the_ceiling_is_never_below_the_reputation_on_a_chain_of_any_length(
    rules: ReputationRules, data: st.DataObject
) -> None:
    length = data.draw(st.integers(1, 300))
    history = MinerHistory(
        terms=(terms := data.draw(st.integers(0, 5))),
        microblocks=terms * 3,
        microblock_squares=terms * 9,
        external_nano=data.draw(st.sampled_from([0, 10**8, 10**9])),
    )
    for position in sorted(data.draw(st.sets(st.integers(0, length - 1), max_size=60))):
        history = after_keyblock(history, position, rules)
    for longer in (length, length + data.draw(st.integers(0, 10**6))):
        assert reputation_nano(history, longer, CAP, rules) <= ceiling_nano(history, CAP, rules)


@settings(max_examples=100)
@given(RULES, EXTERNAL, EPOCHS)
def test_what_is_explained_is_what_counts(
    rules: ReputationRules, external: dict[bytes, int], epochs: list[EpochEvents]
) -> None:
    standings, _ = grown(rules, external, epochs)
    for member in standings.committee(12):
        assert standings.explain(member.public_key).reputation_nano == member.reputation_nano
        assert standings.reputation_nano(member.public_key) == member.reputation_nano


def test_an_identity_without_keyblock_or_ext_never_sits() -> None:
    led: EpochEvents = (MINERS[0], {MINERS[2]: [CAP]}, None)
    standings, histories = grown(SMALL, {MINERS[0]: 1, MINERS[1]: 0}, [led])
    assert [member.public_key for member in standings.committee(13)] == [MINERS[0]]
    assert standings.reputation_nano(MINERS[1]) > 0
    standings.apply(changes_of(histories, 1, (MINERS[2], {}, None), SMALL), 2)
    assert {member.public_key for member in standings.committee(13)} == {MINERS[0], MINERS[2]}


def test_an_offender_never_sits_again() -> None:
    events: list[EpochEvents] = [(MINERS[0], {}, MINERS[0]), *[(MINERS[0], {}, None)] * 20]
    standings, _ = grown(SMALL, {MINERS[0]: REPUTATION_UNIT}, events)
    assert standings.committee(13) == ()
    assert standings.reputation_nano(MINERS[0]) == 0


def test_ties_are_broken_by_the_hash_of_key_and_reputation() -> None:
    standings = Standings(SMALL, CAP, 0, founding(dict.fromkeys(MINERS, REPUTATION_UNIT)).items())
    expected = sorted(MINERS, key=lambda key: tie_break(key, REPUTATION_UNIT))
    assert [member.public_key for member in standings.committee(7)] == expected[:7]


def test_the_tie_break_is_a_plain_hash() -> None:
    """H(PK, R): tag, key and R in 10⁻⁹ as 8 bytes."""
    tag = hashlib.sha256(b"spchain/standing-tie/1").digest()
    for key, reputation in ((MINERS[0], 0), (MINERS[1], 166_666_666), (MINERS[2], REPUTATION_UNIT)):
        plain = hashlib.sha256(tag + tag + key + reputation.to_bytes(8, "big")).digest()
        assert tie_break(key, reputation) == plain


def test_r2_where_reputation_is_capped_no_more_than_the_committee_is_examined() -> None:
    standings = Standings(SMALL, CAP, 0, founding(dict.fromkeys(MINERS, REPUTATION_UNIT)).items())
    trial = standings.trial({}, 0)
    assert len(trial.committee(4)) == trial.examined == 4


def test_r2_miners_that_are_far_behind_are_not_examined() -> None:
    strong = dict.fromkeys(MINERS[:4], REPUTATION_UNIT // 2)
    late: list[EpochEvents] = [(key, {}, None) for key in MINERS[4:]]
    standings, histories = grown(ReputationRules(10_000, 5_000, 4), strong, late)
    trial = standings.trial(changes_of(histories, len(late), (MINERS[5], {}, None), SMALL), len(late) + 1)
    assert len(trial.committee(4)) == 4
    assert trial.examined < len(MINERS)


def test_r3_what_is_kept_grows_with_miners_and_not_with_keyblocks() -> None:
    terms = {MINERS[number]: [number] for number in range(5)}
    events: list[EpochEvents] = [(MINERS[position % 12], terms, None) for position in range(2000)]
    standings, histories = grown(SMALL, {}, events)
    assert len(standings) == 12
    assert sum(len(encode(history)) for history in histories.values()) < 12 * 40
