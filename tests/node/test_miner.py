# SPDX-License-Identifier: GPL-3.0-or-later
"""The miner, step by step, at a node whose chain is real: what it offers and reveals, when, and at which share of a core."""

import threading
from collections.abc import Callable

import msgspec
import pytest

from consensus.work import check_work, search
from ledger.blocks import Keyblock, is_signed_by_miner, keyblock_hash
from ledger.errors import InvalidInput
from node.api.mining_models import MiningWork, RevealWanted
from node.http_client import ApiError, NodeTimeout, NodeUnreachable
from node.identity import Identity
from node.miner import OFFER_INTERVAL_S, PATIENCE_S, POLL_S, REVEAL_INTERVAL_S, SLICE_S, Miner, Senses, measure_rate
from tests.node.mining_kit import EASY, IMPOSSIBLE, MINER, DirectNode, LoneDesk, mining_genesis, solve

KEY = MINER.public.public_key
SECONDS_PER_HASH = 0.0001
GONE = NodeUnreachable("http://node", "refused")


class Bench:
    """A miner with its node and with clocks of its own: hashes take computing time, rests take time."""

    def __init__(
        self,
        desk: LoneDesk | None = None,
        node: DirectNode | None = None,
        *,
        duty: int = 25,
        stop_after: int | None = None,
    ) -> None:
        self.desk = desk or LoneDesk()
        self.node = node or DirectNode(self.desk)
        self.told: list[str] = []
        self.wall_ms = self.desk.now_ms()
        self.rested_s = 0.0
        self._miner: Miner | None = None
        senses = Senses(
            now_ms=lambda: self.wall_ms,
            monotonic_s=lambda: self.rested_s + self.cpu_s(),
            cpu_s=self.cpu_s,
            first_nonce=lambda: 2**256 - 100,
        )
        self.miner = self._miner = Miner(
            MINER,
            searching=self.node,
            watching=self.node,
            duty_percent=duty,
            stop_after=stop_after,
            told=self.told.append,
            senses=senses,
        )

    def cpu_s(self) -> float:
        return 0.0 if self._miner is None else self._miner.progress().hashes * SECONDS_PER_HASH

    def search(self) -> float:
        """Take one step of the searching thread, and rest as it says."""
        rest_s = self.miner.search()
        self.rested_s += rest_s
        return rest_s

    def until(self, reached: Callable[[], object]) -> None:
        """Search until something holds."""
        for _ in range(10_000):
            if reached():
                return
            self.search()
        pytest.fail("the search does not get there")


def offers_of(desk: LoneDesk, identity: Identity = MINER) -> int:
    return sum(signed.keyblock.miner == identity.public.public_key for signed in desk.offers)


# ------------------------------------------------------------------ the whole way


def test_it_finds_offers_and_reveals_epoch_after_epoch() -> None:
    bench = Bench()
    for epoch in range(1, 6):
        bench.miner.watch()
        bench.until(lambda: bench.desk.epoch == epoch)  # noqa: B023 -- called in this turn only
        assert not bench.desk.is_open
        bench.miner.watch()
        assert bench.desk.is_open
    progress = bench.miner.progress()
    assert (progress.found, progress.pinned, progress.work and progress.work.epoch) == (5, 5, 5)
    assert [epoch for epoch, _ in bench.desk.reveals] == [1, 2, 3, 4, 5]
    assert all(is_signed_by_miner(bench.desk.executor.epoch.chain_id, signed) for signed in bench.desk.offers)


def test_it_ends_after_as_many_pinned_and_revealed_keyblocks_as_wanted() -> None:
    desk = LoneDesk()
    node = DirectNode(desk)
    miner = Miner(MINER, searching=node, watching=node, duty_percent=100, stop_after=2)
    before = set(threading.enumerate())
    miner.run()
    assert miner.progress().pinned == 2
    assert [epoch for epoch, _ in desk.reveals] == [1, 2]
    assert desk.is_open
    assert set(threading.enumerate()) <= before


def test_it_ends_when_the_caller_says_so() -> None:
    desk = LoneDesk(mining_genesis(IMPOSSIBLE))
    miner = Miner(MINER, searching=DirectNode(desk), watching=DirectNode(desk))
    searched = threading.Event()
    before = set(threading.enumerate())

    def look(progress: object) -> None:
        if miner.progress().hashes:
            searched.set()

    miner.run(searched.wait, look)
    assert miner.progress().hashes > 0
    assert set(threading.enumerate()) <= before


@pytest.mark.parametrize(("clock_is_behind", "expected"), [(False, "clock"), (True, "earliest")])
def test_a_keyblock_states_the_clock_but_never_a_time_before_the_earliest(clock_is_behind: bool, expected: str) -> None:
    bench = Bench()
    bench.wall_ms = 5 if clock_is_behind else bench.wall_ms
    earliest_ms = bench.desk.work(KEY).earliest_timestamp_ms
    bench.miner.watch()
    bench.until(lambda: bench.desk.offers)
    stated_ms = bench.desk.offers[0].keyblock.timestamp_ms
    assert stated_ms == (earliest_ms if expected == "earliest" else bench.wall_ms)


def test_each_slice_states_the_time_at_which_it_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    searched: list[Keyblock] = []

    def noted(template: Keyblock, start_nonce: int, attempts: int) -> Keyblock | None:
        searched.append(template)
        return search(template, start_nonce, attempts)

    monkeypatch.setattr("node.miner.search", noted)
    bench = Bench(LoneDesk(mining_genesis(IMPOSSIBLE)), duty=100)
    bench.miner.watch()
    began_ms = bench.wall_ms
    for later_ms in range(0, 5_000, 1_000):
        bench.wall_ms = began_ms + later_ms
        bench.search()
    assert [template.timestamp_ms for template in searched] == [
        began_ms + later_ms for later_ms in range(0, 5_000, 1_000)
    ]
    assert len({msgspec.structs.replace(template, timestamp_ms=0) for template in searched}) == 1


def test_a_keyblock_states_the_time_of_the_slice_that_found_it_and_is_solved_with_it() -> None:
    bench = Bench()
    bench.miner.watch()
    times_ms = set()
    while not bench.desk.offers:
        bench.wall_ms += 40
        times_ms.add(bench.wall_ms)
        bench.search()
    keyblock = bench.desk.offers[0].keyblock
    assert keyblock.timestamp_ms in times_ms
    check_work(keyblock, int.from_bytes(keyblock.target, "big"))


# ------------------------------------------------------------------ searching and offering


def test_a_keyblock_is_offered_again_until_another_epoch_runs_and_then_the_search_moves_over() -> None:
    bench = Bench()
    bench.desk.pins = False
    bench.miner.watch()
    bench.until(lambda: offers_of(bench.desk) == 1)
    found_s = bench.rested_s
    bench.until(lambda: offers_of(bench.desk) == 4)
    assert bench.rested_s - found_s == pytest.approx(3 * OFFER_INTERVAL_S, abs=0.01)
    assert len({keyblock_hash(signed.keyblock) for signed in bench.desk.offers}) == 1
    bench.desk.pin(solve(bench.desk))
    bench.miner.watch()
    bench.until(lambda: offers_of(bench.desk) == 5)
    assert bench.desk.offers[-1].keyblock.previous == bench.desk.executor.epoch.record.keyblock
    assert bench.miner.progress().pinned == 0


def test_the_search_goes_on_where_it_was_while_the_epoch_is_the_same() -> None:
    bench = Bench(LoneDesk(mining_genesis(IMPOSSIBLE)))
    bench.miner.watch()
    bench.search()
    job = bench.miner._job
    assert job is not None
    nonce = job.nonce
    bench.miner.watch()
    assert bench.miner._job is job
    assert job.nonce == nonce


def test_nonces_go_round_at_their_end() -> None:
    bench = Bench(LoneDesk(mining_genesis(IMPOSSIBLE)))
    bench.miner.watch()
    bench.search()
    job = bench.miner._job
    assert job is not None
    assert 0 <= job.nonce < 2**255


def test_a_keyblock_that_the_node_refuses_is_told_once_and_offered_again() -> None:
    desk = LoneDesk()
    desk_ms = [desk.now_ms() - 60_000]
    bench = Bench(desk)
    desk.now_ms = lambda: desk_ms[0]  # a minute behind: the keyblock seems to come from the future
    bench.miner.watch()
    bench.until(lambda: bench.rested_s > 5 * OFFER_INTERVAL_S)
    assert desk.offers == []
    assert len([text for text in bench.told if "refuses" in text]) == 1
    desk_ms[0] += 60_000
    bench.until(lambda: desk.epoch == 1)


def test_a_keyblock_that_comes_second_is_offered_without_a_word() -> None:
    bench = Bench()
    bench.miner.watch()
    bench.desk.offer(solve(bench.desk))
    bench.until(lambda: bench.rested_s > 2 * OFFER_INTERVAL_S)
    assert bench.miner.progress().found == 1
    assert offers_of(bench.desk) == 0
    assert not [text for text in bench.told if "refuses" in text]


# ------------------------------------------------------------------ revealing


def pinned(bench: Bench) -> RevealWanted:
    """Bring the bench's chain to an epoch that the miner's keyblock began, without the miner knowing yet."""
    bench.miner.watch()
    bench.until(lambda: bench.desk.epoch == 1)
    wanted = MiningWork.model_validate(bench.desk.work(KEY)).reveal
    assert wanted is not None
    return wanted


def test_a_reveal_is_repeated_until_it_is_not_wanted_any_more_and_signed_once() -> None:
    bench = Bench()
    bench.desk.opens = False
    pinned(bench)
    for _ in range(3):
        bench.miner.watch()
    assert len(bench.desk.reveals) == 3
    assert len(set(bench.desk.reveals)) == 1
    # Between two reveals it waits for what would change the matter: another epoch.
    assert bench.node.asked[-2:] == [(1, False, REVEAL_INTERVAL_S)] * 2
    bench.desk.opens = True
    for _ in range(3):
        bench.miner.watch()
    assert len(bench.desk.reveals) == 4
    assert bench.node.asked[-1] == (1, True, POLL_S)


def test_after_a_restart_it_reveals_for_a_keyblock_that_it_does_not_remember() -> None:
    bench = Bench()
    pinned(bench)
    Bench(bench.desk).miner.watch()
    assert bench.desk.is_open


def test_at_a_new_network_it_reveals_again() -> None:
    bench = Bench()
    pinned(bench)
    bench.miner.watch()
    other = LoneDesk(msgspec.structs.replace(mining_genesis(), network="other"))
    other.pin(solve(other, MINER))
    bench.node.desk = other
    bench.miner.watch()
    assert other.is_open


class LyingNode(DirectNode):
    """Says of its work what a test wants."""

    changes: dict[str, object] = {}  # noqa: RUF012 -- set by tests

    def mining_work(
        self, miner: bytes, epoch: int | None = None, *, reveal: bool = True, wait_s: int = 0
    ) -> MiningWork:
        return super().mining_work(miner, epoch, reveal=reveal, wait_s=wait_s).model_copy(update=self.changes)


def asked_to_reveal(changes: Callable[[RevealWanted], dict[str, object]]) -> Bench:
    """Return what comes of a node that asks for a keyblock's reveal with a lie, twice."""
    desk = LoneDesk()
    bench = Bench(desk, node := LyingNode(desk))
    wanted = pinned(bench)
    node.changes = {"reveal": wanted, **changes(wanted)}
    bench.miner.watch()
    bench.miner.watch()
    return bench


@pytest.mark.parametrize(
    "changes",
    [
        lambda wanted: {"reveal": wanted.model_copy(update={"keyblock_hash": bytes(32)})},
        lambda wanted: {"previous": bytes(32)},
        # The epoch in which the keyblock was mined: it cannot be pinned yet.
        lambda wanted: {"epoch": 0},
        lambda wanted: {"epoch": 2},
    ],
    ids=["another-keyblock", "not-the-epochs-own", "not-pinned", "pinned-later"],
)
def test_a_seed_that_is_not_due_is_not_revealed(changes: Callable[[RevealWanted], dict[str, object]]) -> None:
    bench = asked_to_reveal(changes)
    assert bench.desk.reveals == []
    assert len([text for text in bench.told if "not due" in text]) == 1


def test_a_second_seed_in_one_epoch_is_not_revealed() -> None:
    desk = LoneDesk()
    bench = Bench(desk, node := LyingNode(desk))
    wanted = pinned(bench)
    bench.miner.watch()
    node.changes = {"reveal": wanted.model_copy(update={"previous_seed": bytes(32)})}
    bench.miner.watch()
    assert len(desk.reveals) == 1
    assert "not due" in bench.told[-1]


def test_a_reveal_that_the_node_refuses_is_told_once() -> None:
    bench = asked_to_reveal(lambda wanted: {"reveal": wanted.model_copy(update={"previous_seed": bytes(32)})})
    assert bench.desk.reveals == []
    assert len([text for text in bench.told if "refuses our reveal" in text]) == 1


# ------------------------------------------------------------------ a node in trouble


@pytest.mark.parametrize(
    "error", [GONE, NodeTimeout("http://node", 5), ApiError(503, "busy", "x", ""), ApiError(507, "storage", "x", "")]
)
def test_a_node_in_trouble_is_asked_ever_more_rarely_and_told_once(error: Exception) -> None:
    bench = Bench(LoneDesk(mining_genesis(IMPOSSIBLE)))
    bench.miner.watch()
    bench.node.fails_with = error
    assert [bench.miner.watch() for _ in range(7)] == [0.5, 1.0, 2.0, 4.0, 8.0, 10.0, 10.0]
    assert [text for text in bench.told if str(error) in text] == bench.told
    assert len(bench.told) == 1
    assert not bench.miner.progress().is_connected
    bench.node.fails_with = None
    bench.miner.watch()
    assert bench.told[1:] == ["the node answers again"]
    assert bench.miner.progress().is_connected


def test_the_search_goes_on_without_the_node_but_not_for_ever() -> None:
    bench = Bench(LoneDesk(mining_genesis(IMPOSSIBLE)))
    bench.miner.watch()
    bench.node.fails_with = GONE
    for _ in range(20):
        bench.search()
    tried = bench.miner.progress().hashes
    assert tried > 0
    bench.rested_s += PATIENCE_S
    for _ in range(20):
        bench.search()
    assert bench.miner.progress().hashes == tried
    assert PATIENCE_S > 2 * POLL_S, "a node that waits for news is not silent"


def test_what_was_found_without_the_node_is_offered_when_it_is_back() -> None:
    bench = Bench()
    bench.miner.watch()
    bench.node.fails_with = GONE
    bench.until(lambda: bench.miner.progress().found)
    bench.rested_s += 2 * PATIENCE_S
    bench.search()
    bench.node.fails_with = None
    bench.until(lambda: bench.desk.epoch == 1)


@pytest.mark.parametrize("error", [ApiError(401, "unauthorised", "x", ""), ApiError(0, "bad_answer", "x", "")])
def test_what_does_not_get_better_ends_the_miner(error: ApiError) -> None:
    for failing in (0, 1):
        desk = LoneDesk()
        nodes = [DirectNode(desk), DirectNode(desk)]
        nodes[failing].fails_with = error
        with pytest.raises(ApiError) as caught:
            Miner(MINER, watching=nodes[0], searching=nodes[1]).run()
        assert caught.value is error


# ------------------------------------------------------------------ the duty cycle


@pytest.mark.parametrize("duty", [1, 10, 25, 60, 100])
def test_the_computing_time_keeps_to_the_duty_cycle(duty: int) -> None:
    bench = Bench(LoneDesk(mining_genesis(IMPOSSIBLE)), duty=duty)
    bench.miner.watch()
    bench.until(lambda: bench.cpu_s() > 50 * SLICE_S)
    share = bench.cpu_s() / (bench.cpu_s() + bench.rested_s)
    assert share == pytest.approx(duty / 100, rel=0.05)


def test_slices_come_to_the_wanted_length() -> None:
    bench = Bench(LoneDesk(mining_genesis(IMPOSSIBLE)), duty=100)
    bench.miner.watch()
    for _ in range(20):
        bench.search()
    before_s = bench.cpu_s()
    bench.search()
    assert bench.cpu_s() - before_s == pytest.approx(SLICE_S, rel=0.1)


def test_time_that_was_not_used_is_lost() -> None:
    bench = Bench(LoneDesk(mining_genesis(IMPOSSIBLE)))
    for _ in range(1_000):
        bench.search()  # there is no work yet
    bench.miner.watch()
    bench.until(lambda: bench.cpu_s() > 0)
    began_s, rested_s = bench.cpu_s(), bench.rested_s
    bench.until(lambda: bench.cpu_s() - began_s > 10 * SLICE_S)
    assert bench.rested_s - rested_s > 3 * 9 * SLICE_S


@pytest.mark.parametrize("duty", [-1, 0, 101])
def test_an_impossible_duty_cycle_is_refused(duty: int) -> None:
    with pytest.raises(InvalidInput, match=f"{duty} %"):
        Bench(duty=duty)


def test_a_machine_is_measured_in_computing_time() -> None:
    assert measure_rate(0.01) > EASY // 2**252
