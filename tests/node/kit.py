# SPDX-License-Identifier: GPL-3.0-or-later
"""What the tests of the node share: transactions and batches of the test genesis, a network that answers as told, waiting."""

from collections.abc import Callable, Sequence

import msgspec
import trio

from consensus.block_tree import CertifiedMicroblock
from consensus.election import reveal
from consensus.messages import Certificate
from consensus.work import search
from ledger import testing
from ledger.blocks import Keyblock, SignedKeyblock, SignedMicroblock, sign_keyblock
from ledger.codec import decode
from ledger.genesis import chain_id
from ledger.memory_store import MemoryStore
from ledger.transactions import CheckedTransaction, check_transaction, encode_batch
from node.batches import Batch, check_batch
from node.identity import Identity
from node.mining import MiningWork
from p2p.errors import RequestFailed, RequestFailure

GENESIS = testing.genesis()
CHAIN = chain_id(GENESIS)
UNFUNDED = 1000
"""Number of a key that the genesis gives nothing."""


def pay(sender: int, nonce: int, amount: int = 1, recipient: int = 0) -> bytes:
    return testing.transfer(CHAIN, testing.key(sender), testing.key(recipient).address, amount, nonce)


def paid(sender: int, nonce: int, amount: int = 1) -> CheckedTransaction:
    return check_transaction(pay(sender, nonce, amount), testing.rules_of(CHAIN))


def batch_of(*raws: bytes) -> Batch:
    return check_batch(encode_batch(raws), testing.rules_of(CHAIN))


def forged(raw: bytes) -> bytes:
    """Return a transaction whose shape is right and whose signature is not."""
    return raw[:-1] + bytes([raw[-1] ^ 1])


def memory_store() -> MemoryStore:
    return MemoryStore(GENESIS)


def chain_of(*batches: Batch) -> tuple[CertifiedMicroblock, ...]:
    """Return certified microblocks of one batch each; nobody has signed their certificates."""
    store, blocks = memory_store(), []
    for batch in batches:
        store.put_batches([(batch.digest, batch.raw)])
        update = testing.next_update(store, [[batch.transactions[0].raw]])
        store.commit(update)
        signed = decode(SignedMicroblock, update.microblock, 2**20)
        blocks.append(CertifiedMicroblock(signed, Certificate(0, update.head.round, update.head.block_hash, ())))
    return tuple(blocks)


def mined(work: MiningWork, miner: Identity, now_ms: int, /, **changes: object) -> SignedKeyblock:
    """Return a keyblock that solves a miner's work; with changes, that of a miner gone wrong, who solves the puzzle all the same."""
    public = miner.public
    keyblock = Keyblock(
        previous=work.previous,
        microblock=work.microblock,
        miner=public.public_key,
        reveal_key=public.reveal_key,
        reputation_nano=work.reputation_nano,
        target=work.target,
        timestamp_ms=max(now_ms, work.earliest_timestamp_ms),
        state_root=work.state_root,
        nonce=bytes(32),
    )
    solved = search(msgspec.structs.replace(keyblock, **changes), 0, 100_000)
    assert solved is not None, "the test network's puzzle takes 16 hashes"
    return sign_keyblock(work.chain_id, miner.signing, solved)


def revealed(work: MiningWork, miner: Identity) -> bytes:
    """Return the reveal that a miner's work asks for."""
    assert work.reveal is not None, "nothing is to be revealed"
    return reveal(miner.reveal_secret, work.reveal.previous_seed, work.reveal.keyblock_hash)


async def until(condition: Callable[[], object], timeout_s: float = 60.0) -> None:
    """Wait until something holds, with a clear failure when it does not; long, because others may load the machine."""
    with trio.move_on_after(timeout_s):
        while not condition():  # noqa: ASYNC110 -- of many things watched only few have an event
            await trio.sleep(0.01)
        return
    raise AssertionError(f"did not come about within {timeout_s} s: {condition}")


Answer = bytes | Exception | None
"""What a scripted peer gives: bytes, an error, or silence."""


class ScriptedNetwork:
    """Answers requests as told and notes who was asked and blamed."""

    def __init__(self) -> None:
        self.answers: dict[tuple[str, str], Callable[[bytes], Answer]] = {}
        self.asked: list[tuple[str, str]] = []
        self.penalties: list[tuple[str, str]] = []

    def script(self, peer_id: str, method: str, answer: Callable[[bytes], Answer]) -> None:
        self.answers[peer_id, method] = answer

    async def request(self, peer_id: str, method: str, payload: bytes, *, timeout_s: float) -> bytes:
        await trio.lowlevel.checkpoint()
        self.asked.append((peer_id, method))
        script = self.answers.get((peer_id, method))
        answer = None if script is None else script(payload)
        if answer is None:
            await trio.sleep(timeout_s)
            raise RequestFailed(RequestFailure.TIMEOUT, peer_id, method, "silent")
        if isinstance(answer, Exception):
            raise answer
        return answer

    def penalise(self, peer_id: str, points: int, reason: str) -> None:
        assert points > 0
        self.penalties.append((peer_id, reason))

    def blamed(self) -> set[str]:
        return {peer_id for peer_id, _ in self.penalties}


def not_available(peer_id: str = "x", method: str = "x") -> RequestFailed:
    return RequestFailed(RequestFailure.NOT_AVAILABLE, peer_id, method, "not here")


def names(items: Sequence[Batch]) -> list[bytes]:
    return [item.digest for item in items]
