# SPDX-License-Identifier: GPL-3.0-or-later
"""What a node tells of its off-chain contracts: what is most urgent must not drown in what is over."""

from node.offchain.challenging import Fault, FaultStage
from node.offchain.offchain import MAX_ALARMS, alarms_of
from node.offchain.watched import WatchedHead


def fault(number: int, stage: FaultStage) -> Fault:
    return Fault(bytes([number]) * 32, 3, "the root is another one", stage, b"", "")


def test_frauds_that_are_over_hide_nothing_that_is_urgent() -> None:
    faults = [fault(9, "challenged"), *(fault(number, "convicted") for number in range(MAX_ALARMS))]
    heads = [WatchedHead(b"\x55" * 32, 7, "no_state", "nobody has a state", "")]
    alarms = alarms_of({b"\x77" * 32: "the journal is gone"}, heads, faults)
    assert len(alarms) == MAX_ALARMS
    assert "is not operated: the journal is gone" in alarms[0]
    assert "not watched after batch 7: nobody has a state" in alarms[1]
    assert alarms[2].endswith("fraud, challenged")
    assert alarms[3].startswith(f"contract {bytes([MAX_ALARMS - 1]).hex() * 32}"), "the newest of those that are over"


def test_a_wrong_batch_that_nobody_has_challenged_in_time_is_told_of() -> None:
    missed = WatchedHead(b"\x55" * 32, 7, "wrong", "batch 7 is wrong and final", "")
    (alarm,) = alarms_of({}, [missed, WatchedHead(b"\x66" * 32, 2, "following", "", "")], [])
    assert "batch 7 is wrong and final" in alarm
    guilty = WatchedHead(b"\x55" * 32, 3, "wrong", "batch 3 is wrong", "the root is another one")
    assert len(alarms_of({}, [guilty], [fault(0x55, "found")])) == 1, "once, not twice"
