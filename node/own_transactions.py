# SPDX-License-Identifier: GPL-3.0-or-later
"""Transactions that a node sends of itself, from its institution's account: made again until they commit, never twice at once."""

from collections.abc import Awaitable, Callable, Hashable, Sequence

import msgspec
import trio

from ledger.bodies import Body
from ledger.crypto.keys import PrivateKey
from ledger.genesis import chain_id
from ledger.state import State
from ledger.store import Store
from ledger.transactions import sign_transaction
from node.submission import SubmitOutcome

EXPIRY_MICROBLOCKS = 200
"""What has not been committed by then is made again."""


class _Sent(msgspec.Struct, frozen=True):
    """A transaction that was made for a purpose."""

    nonce: int
    """Its nonce."""
    expiry_height: int
    """Last height that it is valid at."""


class OwnTransactions:
    """Signs and submits for the node's account; remembers what is under way for which purpose."""

    def __init__(
        self,
        *,
        store: Store,
        key: PrivateKey,
        next_nonce: Callable[[bytes], int],
        submit: Callable[[Sequence[bytes]], Awaitable[list[SubmitOutcome]]],
    ) -> None:
        """`submit` takes signed transactions of `key`'s account."""
        self._store = store
        self._key = key
        self._next_nonce = next_nonce
        self._submit = submit
        self._sent: dict[Hashable, _Sent] = {}
        # One at a time: the next nonce is known only when the transaction before is admitted.
        self._sending = trio.Lock()

    @property
    def address(self) -> bytes:
        """The account."""
        return self._key.address

    def is_under_way(self, purpose: Hashable) -> bool:
        """Tell whether what was sent still waits to be committed: its nonce is neither used nor free, and its time is not over."""
        sent, own = self._sent.get(purpose), self._key.address
        if sent is None or self._store.head().height >= sent.expiry_height:
            return False
        return State(self._store).account(own).nonce <= sent.nonce < self._next_nonce(own)

    def forget(self, purpose: Hashable) -> None:
        """The purpose is fulfilled."""
        self._sent.pop(purpose, None)

    async def send(self, purpose: Hashable, body: Body) -> SubmitOutcome:
        """Sign a transaction with the smallest fee and submit it; tells what became of it at admission."""
        async with self._sending:
            return await self._send(purpose, body)

    async def _send(self, purpose: Hashable, body: Body) -> SubmitOutcome:
        genesis = self._store.genesis
        parameters = genesis.parameters
        expires_in = min(EXPIRY_MICROBLOCKS, parameters.maximum_expiry_microblocks)
        # Whatever is over is forgotten here, so that no more is kept than the mempool holds of this account.
        self._sent = {known: sent for known, sent in self._sent.items() if self.is_under_way(known)}
        sent = _Sent(self._next_nonce(self._key.address), self._store.head().height + expires_in)
        self._sent[purpose] = sent
        raw = sign_transaction(
            chain_id(genesis),
            self._key,
            nonce=sent.nonce,
            fee_microcredit=parameters.minimum_fee_microcredit,
            expiry_height=sent.expiry_height,
            body=body,
        )
        (outcome,) = await self._submit([raw])
        return outcome
