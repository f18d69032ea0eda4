# SPDX-License-Identifier: GPL-3.0-or-later
"""A node without a chain follows the heaviest that can be shown, whoever offers it first and however many they are. Real nodes."""

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from consensus.executor import Executor
from consensus.restart import epoch_record
from contracts.shipped import MACHINES
from ledger.errors import InvalidInput
from node import contest, joining
from node.mining import NoChainYet
from node.replay import Replay
from node.wire import ChainSummary
from tests.consensus.chains import ChainMaker
from tests.node.joining_kit import JoinNet, JoinNode, Liar, history, idle, made, uncertified
from tests.node.kit import until as until_within
from tests.node.networks import MEMBERS, Net, RunningNode, pay

HONEST = made(*history(0, 1, 2))
"""Three keyblocks."""
REWRITE = made(*idle(130))
"""What leaked keys of the founders can make without work: as much as one likes, all of it in the founding epoch."""
POWER = made(*history(4, 5, 6, 4, 5, 6, 4, 5))
"""More work, on another branch, rightly certified."""
ONLY_WORK = uncertified(POWER)
"""The same without certificates."""
PINNED = 6
"""Height of the microblock that pins the honest chain's second keyblock."""
LATE_REWRITE = made(*history(0, 1), *idle(200))
"""What the keys of the committee that follows from that keyblock can make without work."""
LATE_ONLY_WORK = uncertified(made(*history(0, 1, 4, 5, 6, 4, 5, 6, 4, 5)), PINNED)
"""More work than the honest chain's on top of that keyblock, without certificates."""


async def until(condition: Callable[[], object]) -> None:
    """Wait for what a loaded machine may take long to bring about."""
    await until_within(condition, 120)


def weight(maker: ChainMaker) -> int:
    return Executor(maker.store, MACHINES).weight


def keyblock(maker: ChainMaker, epoch: int) -> str:
    record = epoch_record(maker.store, epoch)
    assert record is not None
    return f"{epoch}:{record.keyblock.hex()}"


CHECKPOINT = keyblock(HONEST, 2)


def summary(maker: ChainMaker, **changes: object) -> ChainSummary:
    head = maker.store.head()
    said = ChainSummary(head.height, head.block_hash, maker.epoch.number, weight(maker).to_bytes(40, "big"))
    return msgspec.structs.replace(said, **changes)


@pytest.fixture
def no_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a chain is replayed")

    monkeypatch.setattr(contest, "Replay", refuse)


def test_the_chains_weigh_what_the_attacks_need() -> None:
    assert weight(REWRITE) < weight(HONEST) < weight(POWER)
    assert HONEST.store.head().height < POWER.store.head().height < REWRITE.store.head().height
    assert weight(LATE_REWRITE) < weight(HONEST) < weight(LATE_ONLY_WORK)
    assert HONEST.store.head().height < LATE_ONLY_WORK.store.head().height < LATE_REWRITE.store.head().height
    assert {keyblock(maker, 2) for maker in (HONEST, LATE_REWRITE, LATE_ONLY_WORK)} == {CHECKPOINT}
    assert HONEST.store.block_hash(PINNED) == LATE_ONLY_WORK.store.block_hash(PINNED)


# ---------------------------------------------------------------- agreement


@pytest.mark.usefixtures("no_trials")
async def test_a_chain_on_which_all_peers_agree_is_followed_without_a_replay(tmp_path: Path) -> None:
    async with JoinNet(tmp_path) as net:
        one = await net.start("one", HONEST)
        two = await net.start("two", made(*history(0, 1)), [one.address])
        joiner = await net.start("joiner", None, [one.address, two.address], ["one", "two"])
        assert joiner.joining
        assert joiner.service.status().synchronising
        await until(lambda: joiner.has(HONEST))
        await until(lambda: not joiner.service.status().synchronising)
        assert joiner.score("one") == joiner.score("two") == 0
        assert not (joiner.directory / joining.MARK).exists()


async def test_a_new_network_starts_without_delay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A machine that stalls takes any time to commit what the others have; nobody waits for that.
    monkeypatch.setattr(joining, "FRESH_S", 120.0)
    held: list[joining.Joining] = []

    def hold(founder: joining.Joining) -> None:
        held.append(founder)

    monkeypatch.setattr(joining.Joining, "_hold", hold)
    async with Net(tmp_path) as net:
        assert all(node.service.status().joining == "" for node in net.nodes)
        await net.nodes[0].service.submit([pay(0, 0)])
        await net.agreed(1)
    assert held == []


@pytest.mark.usefixtures("no_trials")
async def test_who_joins_while_the_network_goes_on_takes_part_in_it(tmp_path: Path) -> None:
    async with Net(tmp_path, count=3) as net:
        for nonce in range(3):
            await net.nodes[0].service.submit([pay(0, nonce)])
        await net.agreed(3)
        late = RunningNode(net, 3, MEMBERS[3])
        await net.start(late)
        await net.connected()
        await net.nodes[1].service.submit([pay(1, 0)])
        await net.agreed(4)
        await until(lambda: late.service.status().joining == "")
        await net.nodes[0].kill()
        # Now nothing goes without the newcomer's vote.
        await late.service.submit([pay(1, 1)])
        await net.agreed(5)


@pytest.mark.usefixtures("no_trials")
async def test_a_peer_that_claims_more_than_it_has_is_blamed_and_the_rest_is_followed(tmp_path: Path) -> None:
    async with JoinNet(tmp_path) as net:
        one = await net.start("one", HONEST)
        beyond = made(*history(0, 1, 2), *idle(5))
        liar = await net.lie(Liar("liar", beyond.store, HONEST.store, weight(HONEST)))
        joiner = await net.start("joiner", None, [liar, one.address], ["liar", "one"])
        await until(lambda: joiner.has(HONEST))
        await until(lambda: joiner.score("liar") > 0)
        assert joiner.score("one") == 0


# ---------------------------------------------------------------- attacks


async def surrounded(net: JoinNet, attacker: ChainMaker, count: int, **settings: object) -> tuple[JoinNode, JoinNode]:
    """Start a joiner that knows and has met attackers only, then an honest node, which finds it. Returns both."""
    attackers = [await net.start(f"attacker {number}", attacker) for number in range(count)]
    names = [node.name for node in attackers]
    dials = [node.address for node in attackers]
    joiner = await net.start("joiner", None, dials, [*names, "honest"], **settings)
    await until(lambda: joiner.knows(*names))
    honest = await net.start("honest", HONEST, [joiner.address])
    return joiner, honest


WITH_CHECKPOINT = {"checkpoint": CHECKPOINT}


@pytest.mark.parametrize("settings", [{}, WITH_CHECKPOINT], ids=["genesis", "checkpoint"])
async def test_work_without_certificates_loses(tmp_path: Path, settings: dict[str, object]) -> None:
    async with JoinNet(tmp_path) as net:
        joiner, _ = await surrounded(net, ONLY_WORK, 2, **settings)
        await until(lambda: joiner.has(HONEST))
        if not settings:
            # With a checkpoint, what contradicts it is out before anybody looks whose fault that is.
            assert all(joiner.score(f"attacker {number}") > 0 for number in range(2))
        assert joiner.score("honest") == 0


@pytest.mark.parametrize("settings", [{}, WITH_CHECKPOINT], ids=["genesis", "checkpoint"])
async def test_work_without_certificates_on_top_of_a_final_keyblock_loses(
    tmp_path: Path, settings: dict[str, object]
) -> None:
    async with JoinNet(tmp_path) as net:
        joiner, _ = await surrounded(net, LATE_ONLY_WORK, 2, **settings)
        await until(lambda: joiner.has(HONEST))
        assert joiner.score("honest") == 0


@pytest.mark.parametrize("settings", [{}, WITH_CHECKPOINT], ids=["genesis", "checkpoint"])
async def test_a_rewrite_by_the_committee_of_a_final_keyblock_loses(
    tmp_path: Path, settings: dict[str, object]
) -> None:
    async with JoinNet(tmp_path) as net:
        joiner, _ = await surrounded(net, LATE_REWRITE, 3, **settings)
        await until(lambda: joiner.has(HONEST))
        assert joiner.score("honest") == joiner.score("attacker 0") == 0


@pytest.mark.parametrize("settings", [{}, WITH_CHECKPOINT], ids=["genesis", "checkpoint"])
async def test_a_rewrite_by_the_founders_leaked_keys_loses_however_many_offer_it_first(
    tmp_path: Path, settings: dict[str, object]
) -> None:
    async with JoinNet(tmp_path) as net:
        joiner, _ = await surrounded(net, REWRITE, 5, **settings)
        await until(lambda: joiner.has(HONEST))
        assert joiner.score("honest") == 0
        # It was a lighter chain, honestly stated: nobody is to blame.
        assert joiner.score("attacker 0") == 0
        assert not list(joiner.directory.glob(f"{joining.MARK}*"))


async def test_a_weight_without_work_is_not_even_replayed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[int] = []
    replay = Replay

    def noted(*arguments: object) -> Replay:
        tried.append(len(tried))
        return replay(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(contest, "Replay", noted)
    boast = summary(REWRITE, weight=(2**300).to_bytes(40, "big"))
    async with JoinNet(tmp_path) as net:
        honest = await net.start("honest", HONEST)
        liars = [await net.lie(Liar(f"liar {n}", REWRITE.store, REWRITE.store, 0, boast)) for n in range(4)]
        meets = ["honest", *(f"liar {n}" for n in range(4))]
        joiner = await net.start("joiner", None, [*liars, honest.address], meets)
        await until(lambda: joiner.has(HONEST))
        assert len(tried) <= 1
        assert all(joiner.score(f"liar {n}") > 0 for n in range(4))


async def test_liars_among_honest_peers_are_found_out_before_anything_of_them_is_taken(tmp_path: Path) -> None:
    """They say to have the honest chain, hash by hash, and give the founders' rewrite."""
    async with JoinNet(tmp_path) as net:
        honest = await net.start("honest", HONEST)
        liars = [await net.lie(Liar(f"liar {n}", HONEST.store, REWRITE.store, weight(HONEST))) for n in range(3)]
        meets = ["honest", *(f"liar {n}" for n in range(3))]
        joiner = await net.start("joiner", None, [*liars, honest.address], meets)
        await until(lambda: joiner.has(HONEST))
        assert joiner.score("honest") == 0


# ---------------------------------------------------------------- checkpoints


async def test_a_heavier_chain_that_contradicts_the_checkpoint_is_not_followed(tmp_path: Path) -> None:
    async with JoinNet(tmp_path) as net:
        joiner, _ = await surrounded(net, POWER, 2, checkpoint=keyblock(HONEST, 2))
        await until(lambda: joiner.has(HONEST))
    async with JoinNet(tmp_path / "without") as net:
        net.directory.mkdir()
        joiner, _ = await surrounded(net, POWER, 1)
        await until(lambda: joiner.has(POWER))


async def test_without_a_chain_that_holds_the_checkpoint_a_node_says_so_and_waits(tmp_path: Path) -> None:
    async with JoinNet(tmp_path) as net:
        power = await net.start("power", POWER)
        rewrite = await net.start("rewrite", REWRITE)
        checkpoint = keyblock(HONEST, 1)
        dials = [power.address, rewrite.address]
        joiner = await net.start("joiner", None, dials, ["power", "rewrite"], checkpoint=checkpoint)
        await until(lambda: checkpoint.partition(":")[2] in joiner.joining)
        assert joiner.height == 0
        with pytest.raises(NoChainYet, match="not chosen"):
            joiner.service.mining.work(joiner.identity.public.public_key)
        await net.start("honest", HONEST, [joiner.address])
        await until(lambda: joiner.has(HONEST))


async def test_one_peer_is_believed_no_more_than_many_when_there_is_a_checkpoint(tmp_path: Path) -> None:
    async with JoinNet(tmp_path) as net:
        honest = await net.start("honest", HONEST)
        joiner = await net.start("joiner", None, [honest.address], checkpoint=keyblock(HONEST, 3))
        await until(lambda: joiner.has(HONEST))


@pytest.mark.parametrize("checkpoint", [keyblock(POWER, 1), f"0:{'00' * 32}"])
async def test_a_checkpoint_against_what_is_final_here_is_an_error(tmp_path: Path, checkpoint: str) -> None:
    with pytest.raises(ExceptionGroup) as caught:
        async with JoinNet(tmp_path) as net:
            await net.start("node", HONEST, checkpoint=checkpoint)
    assert caught.group_contains(InvalidInput, match="correct the checkpoint")


# ---------------------------------------------------------------- finality, restarts


async def test_a_node_never_leaves_what_is_final_for_it(tmp_path: Path) -> None:
    own = made(*idle(8))
    async with JoinNet(tmp_path) as net:
        heavier = [await net.start(f"heavier {n}", HONEST) for n in range(2)]
        node = await net.start("node", own, [other.address for other in heavier])
        assert node.joining == ""
        await until(lambda: node.knows("heavier 0", "heavier 1"))
        await net.start("same", made(*idle(20)), [node.address])
        await until(lambda: node.height >= 19)
        assert node.follows(REWRITE)


async def test_a_node_stopped_half_way_chooses_again_among_chains_that_continue_its_own(tmp_path: Path) -> None:
    half_way = made(*idle(2))
    async with JoinNet(tmp_path) as net:
        rewrite = await net.start("rewrite", REWRITE)
        honest = await net.start("honest", HONEST)
        joiner = net.prepare("joiner", half_way, [rewrite.address, honest.address], ["rewrite", "honest"])
        (joiner.directory / joining.MARK).touch()
        leftover = joiner.directory / f"{joining.MARK}-1"
        leftover.mkdir()
        (leftover / "data.mdb").write_bytes(b"torn")
        await net.run(joiner)
        assert joiner.joining
        assert not leftover.exists()
        await until(lambda: joiner.has(HONEST))
        assert not list(joiner.directory.glob(f"{joining.MARK}*"))
        await joiner.stop()
        await net.run(joiner)
        assert joiner.joining == ""
