# SPDX-License-Identifier: GPL-3.0-or-later
"""What peers are answered who ask about the chain."""

import msgspec
import pytest

from consensus.block_tree import CertifiedMicroblock
from ledger import testing
from ledger.codec import encode
from ledger.errors import InvalidInput
from node import answers
from node.answers import answer_batches, answer_chain
from node.wire import MAX_CHAIN_BLOCKS, MAX_DIGESTS, ChainRequest, Digests, decode_batches_answer, decode_chain_answer
from tests.node.kit import batch_of, chain_of, memory_store, pay

BATCHES = [batch_of(pay(0, nonce)) for nonce in range(6)]


def test_answers_hold_what_was_asked_for_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    store = memory_store()
    chain = chain_of(*BATCHES)
    for batch, block in zip(BATCHES[:4], chain, strict=False):
        store.put_batches([(batch.digest, batch.raw)])
        update = testing.next_update(store, [[batch.transactions[0].raw]])
        store.commit(msgspec.structs.replace(update, certificate=encode(block.certificate)))

    def ask(after_height: int, limit: int = MAX_CHAIN_BLOCKS) -> tuple[CertifiedMicroblock, ...]:
        raw = answer_chain(store, lambda: chain[4:], encode(ChainRequest(0, after_height, limit)))
        return decode_chain_answer(raw).blocks

    assert ask(0) == chain
    assert ask(2) == chain[2:]
    assert ask(0, 3) == chain[:3]
    assert ask(3, 2) == chain[3:5]
    assert ask(4) == chain[4:]
    assert ask(5) == chain[5:]
    assert ask(len(chain)) == ask(2**63 - 1) == ()
    for raw in (
        b"",
        b"rubbish",
        encode(ChainRequest(0, 0, MAX_CHAIN_BLOCKS)) + b"x",
        encode((0, 0)),
        encode((0, -1, 1)),
    ):
        with pytest.raises(InvalidInput):
            answer_chain(store, lambda: chain[4:], raw)
    monkeypatch.setattr(answers, "MAX_ANSWER_BYTES", 700)
    assert 1 <= len(ask(0)) < 4
    monkeypatch.setattr(answers, "MAX_ANSWER_BYTES", 300)
    digests = Digests(tuple(batch.digest for batch in BATCHES))
    answer = decode_batches_answer(answer_batches(store, encode(digests)))
    assert 1 <= len(answer.batches) < 4
    with pytest.raises(InvalidInput):
        answer_batches(store, encode((tuple(bytes(32) for _ in range(MAX_DIGESTS + 1)),)))
