# SPDX-License-Identifier: GPL-3.0-or-later
"""Retarget: how hard the next keyblocks are, from the times of the last ones; and which times are allowed.

A window of n keyblocks is measured from the time of the keyblock before it to the time of its last one, so that windows share their
ends and every interval counts once (Bitcoin leaves one out, and thereby lets windows drift apart). For a wanted span of E:

    next target = target · clamp(span / E, 1/4, 4), rounded down, within [1, limit]

Requirements:
R1 (determinism) integers only; clock readings never enter the target, only times that the chain holds.
R2 (bounded) one window changes the target by a factor within [1/4, 4] and never beyond [1, limit].
R3 (monotone) a longer span or a larger target never gives a smaller next target.
R4 (convergence) under constant computing power the mean interval comes within 10 % of the wanted one, from any target.
R5 (time warp) if the errors of stated times stay within a range of δ, lying never makes the target larger than 1/(1 − δ/E) of the
   fair one, for however many windows: the ends are shared, so what a lie adds to one window the next one loses.
R6 (times) a keyblock is later than the median of the last eleven and than the microblock it was mined on, and at most a drift
   ahead of the checker's clock.

Why the microblock: the median alone does not give R5. Who mines most keyblocks can hold the median back for months, drop one end of
a window to it (the loss is clamped to 1/4) and then claim four times the span in window after window; each time gains a factor
of 4 (the Murch-Zawy attack on Bitcoin, BIP 54). What the median cannot say, the microblocks can: an honest leader states its clock,
times only rise from block to block, and voters refuse what is ahead of them. A keyblock mined on a microblock of the running
epoch is thus behind the truth by no more than the time since the last honest leader before that microblock, and ahead by no more
than the drift; δ is the sum. Leaders who all lie, for whole epochs on end, would widen it: that takes the committee, not
computing power.
"""

from collections.abc import Sequence

from ledger.errors import InvalidInput
from ledger.miners import MEDIAN_KEYBLOCKS
from ledger.rules import WorkRules


def next_target(target: int, first_timestamp_ms: int, last_timestamp_ms: int, keyblocks: int, rules: WorkRules) -> int:
    """Return the target after a window of so many keyblocks.

    `first_timestamp_ms` is the time of the keyblock before the window (of the genesis for the first one),
    `last_timestamp_ms` that of its last keyblock. Times that run backwards count as the shortest span.
    """
    limit = int.from_bytes(rules.limit, "big")
    assert 1 <= target <= limit, "a target in use is within its bounds"
    assert keyblocks >= 1, "a window holds keyblocks"
    wanted_ms = keyblocks * rules.interval_ms
    # Four times the span, so that both bounds are exact whatever the wanted span is divisible by.
    quarters = min(max(4 * (last_timestamp_ms - first_timestamp_ms), wanted_ms), 16 * wanted_ms)
    return max(1, min(limit, target * quarters // (4 * wanted_ms)))


def median_ms(timestamps_ms: Sequence[int]) -> int:
    """Return the median of the last eleven times, or of all while there are fewer; the later of two in the middle."""
    assert timestamps_ms, "the genesis gives the first time"
    newest = sorted(timestamps_ms[-MEDIAN_KEYBLOCKS:])
    return newest[len(newest) // 2]


def earliest_timestamp_ms(timestamps_ms: Sequence[int], microblock_timestamp_ms: int) -> int:
    """Return the earliest time that the next keyblock may state: a miner takes this or its clock's, whichever is later."""
    return max(median_ms(timestamps_ms), microblock_timestamp_ms) + 1


def check_not_early(timestamp_ms: int, timestamps_ms: Sequence[int], microblock_timestamp_ms: int) -> None:
    """Check a keyblock's time against those of the chain; the same on every node and on every replay.

    `timestamps_ms` are the times of the keyblocks before it, genesis first; the last eleven are enough. Raises `InvalidInput`.
    """
    median = median_ms(timestamps_ms)
    if timestamp_ms <= median:
        raise InvalidInput(
            f"keyblock's time {timestamp_ms} ms is not later than {median} ms, the median of the keyblocks before it: "
            "correct the miner's clock"
        )
    if timestamp_ms <= microblock_timestamp_ms:
        raise InvalidInput(
            f"keyblock's time {timestamp_ms} ms is not later than {microblock_timestamp_ms} ms, the time of the microblock "
            "it was mined on: correct the miner's clock"
        )


def check_not_ahead(timestamp_ms: int, now_ms: int, drift_ms: int) -> None:
    """Check a keyblock's time against the checker's clock. Raises `InvalidInput`.

    Only who votes on a keyblock asks this. On a keyblock that is pinned already the committee has answered for good, and clocks
    would make nodes disagree.
    """
    if timestamp_ms > now_ms + drift_ms:
        raise InvalidInput(
            f"keyblock's time {timestamp_ms} ms is {timestamp_ms - now_ms} ms ahead of this clock; at most {drift_ms} ms are "
            "allowed: correct the clock that is wrong, or offer the keyblock again later"
        )
