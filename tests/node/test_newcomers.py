# SPDX-License-Identifier: GPL-3.0-or-later
"""When a founding member of a network begins, whom others wait for, and what silence is worth. Virtual time."""

from pathlib import Path

import trio

from consensus.executor import Executor
from contracts.shipped import MACHINES
from ledger import testing
from ledger.memory_store import MemoryStore
from node import joining as module
from node.answers import answer
from node.joining import Joining, JoinPorts, JoinSettings
from node.sync import Sync
from node.wire import REQUEST_HASHES, REQUEST_KEYBLOCKS, REQUEST_SUMMARY
from tests.consensus.chains import ChainMaker
from tests.node.joining_kit import GENESIS, history, idle, made
from tests.node.kit import ScriptedNetwork, until


class Newcomer:
    """The joining of a node without a chain, with its voting noted and its peers scripted."""

    def __init__(self, directory: Path, member: int = 0) -> None:
        self.chain = ChainMaker(MemoryStore(GENESIS))
        self.network = ScriptedNetwork()
        self.peers: list[str] = []
        self.voting: list[bool] = []
        settings = JoinSettings(directory, 3.0, None, frozenset(), 1 << 30)
        own_address = testing.key(member).address
        self.joining = Joining(settings, self.chain.store, Executor(self.chain.store, MACHINES).epoch, own_address)
        self.joining.attach(
            JoinPorts(
                network=self.network,
                peers=lambda: self.peers,
                set_voting=self.voting.append,
                sync_from=self._no_sync,
                certified_tail=tuple,
                checkers=trio.CapacityLimiter(1),
                at_home=lambda: None,
            )
        )

    def _no_sync(self, *_: object) -> Sync:
        raise AssertionError("nothing is fetched before others have been heard")

    def meet(self, name: str, chain: ChainMaker) -> None:
        """Connect a peer that has a chain and gives nothing of it."""

        def reply(method: str, payload: bytes) -> bytes:
            found = answer(
                method, payload, store=chain.store, tail=tuple, weight=Executor(chain.store, MACHINES).weight
            )
            assert found is not None
            return found

        self.network.script(name, REQUEST_SUMMARY, lambda payload: reply(REQUEST_SUMMARY, payload))
        self.network.script(name, REQUEST_HASHES, lambda payload: reply(REQUEST_HASHES, payload))
        self.network.script(name, REQUEST_KEYBLOCKS, lambda payload: reply(REQUEST_KEYBLOCKS, payload))
        self.peers.append(name)
        self.joining.peer_came(chain.store.head().height)

    def meet_mute(self, name: str) -> None:
        """Connect a peer that answers nothing."""
        self.network.script(name, REQUEST_SUMMARY, lambda _: None)
        self.peers.append(name)
        self.joining.peer_came(0)


async def test_who_is_about_to_commit_what_others_have_goes_on(tmp_path: Path, autojump_clock: object) -> None:
    founder = Newcomer(tmp_path)
    founder.meet("quick", made(*idle(2)))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(founder.joining.run)
        await trio.sleep(module.FRESH_S / 2)
        founder.chain.extend()
    assert founder.joining.is_home()
    assert founder.voting == []


async def test_who_does_not_catch_up_with_a_new_network_listens_to_it(tmp_path: Path, autojump_clock: object) -> None:
    founder = Newcomer(tmp_path)
    founder.meet("quick", made(*idle(2)))
    with trio.move_on_after(module.FRESH_S + 1):
        await founder.joining.run()
    assert founder.joining.holds
    assert founder.voting == [False]


async def test_a_network_that_has_been_running_for_long_is_listened_to_at_once(
    tmp_path: Path, autojump_clock: object
) -> None:
    founder = Newcomer(tmp_path)
    founder.meet("old", made(*idle(module.FRESH_MICROBLOCKS + 1)))
    assert founder.joining.holds
    assert founder.voting == [False]


async def test_a_long_chain_that_a_peer_has_got_since_is_listened_to_at_once(
    tmp_path: Path, autojump_clock: object
) -> None:
    founder = Newcomer(tmp_path)
    founder.meet("other", made())
    assert not founder.joining.holds
    founder.peers.clear()
    founder.meet("other", made(*idle(module.FRESH_MICROBLOCKS + 1)))
    assert founder.voting == [False]


async def test_a_founder_whose_peers_have_gone_begins_again(tmp_path: Path, autojump_clock: object) -> None:
    """Also the only one there is: nobody else would wake it."""
    founder = Newcomer(tmp_path)
    founder.meet("old", made(*idle(module.FRESH_MICROBLOCKS + 1)))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(founder.joining.run)
        await trio.sleep(1)
        founder.peers.clear()
        await trio.sleep(60)
        assert founder.voting == [False, True]
        assert not founder.joining.holds
        nursery.cancel_scope.cancel()


async def test_a_mark_that_cannot_be_removed_ends_nothing(tmp_path: Path, autojump_clock: object) -> None:
    (tmp_path / module.MARK).mkdir()  # nor can a file be that the disk refuses to remove
    founder = Newcomer(tmp_path)
    founder.meet("old", made(*idle(module.FRESH_MICROBLOCKS + 1)))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(founder.joining.run)
        await trio.sleep(1)
        founder.peers.clear()
        await trio.sleep(60)
        assert founder.voting == [False, True]
        nursery.cancel_scope.cancel()


# ---------------------------------------------------------------- silence


async def test_silence_is_no_proof_that_nobody_has_a_chain(tmp_path: Path, autojump_clock: object) -> None:
    """Who takes part in a network that is beginning believes what its founders say; their keys may have leaked since."""
    stranger = Newcomer(tmp_path, member=9)
    stranger.meet_mute("one")
    with trio.move_on_after(600):
        await stranger.joining.run()
    assert stranger.joining.holds
    assert stranger.voting == []


async def test_who_waits_for_a_new_network_says_so(tmp_path: Path, autojump_clock: object) -> None:
    stranger = Newcomer(tmp_path, member=9)
    stranger.meet("founder", made())
    with trio.move_on_after(20):
        await stranger.joining.run()
    assert "no peer has microblocks" in stranger.joining.doing


async def test_a_peer_that_is_busy_for_a_moment_is_heard_before_anything_is_taken(
    tmp_path: Path, autojump_clock: object
) -> None:
    stranger = Newcomer(tmp_path, member=9)
    stranger.meet("quick", made(*idle(130)))
    stranger.meet("honest", made(*history(0, 1, 2)))
    answers = stranger.network.answers
    given, questions = answers["honest", REQUEST_SUMMARY], iter(range(9))
    stranger.network.script("honest", REQUEST_SUMMARY, lambda payload: None if next(questions) < 2 else given(payload))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stranger.joining.run)
        await until(lambda: ("honest", REQUEST_KEYBLOCKS) in stranger.network.asked, 120)
        nursery.cancel_scope.cancel()


async def test_peers_that_come_and_say_nothing_put_a_decision_off_but_not_for_ever(
    tmp_path: Path, autojump_clock: object
) -> None:
    stranger = Newcomer(tmp_path, member=9)
    stranger.meet("one", made(*idle(9)))
    stranger.meet("two", made(*history(0)))

    async def crowd() -> None:
        for number in range(1_000):
            stranger.peers[2:] = [f"mute {number}"]
            stranger.meet_mute(f"mute {number}")
            await trio.sleep(4)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(crowd)
        nursery.start_soon(stranger.joining.run)
        await until(lambda: ("two", REQUEST_KEYBLOCKS) in stranger.network.asked, 300)
        nursery.cancel_scope.cancel()
