# SPDX-License-Identifier: GPL-3.0-or-later
"""What the API needs of a node about off-chain contracts; `node.offchain.offchain.Offchain` provides it."""

from collections.abc import Sequence
from typing import Protocol

from contracts.operator import Answer
from ledger.offchain import BatchCommitment, LeafProof, SignedReceipt
from ledger.partial_tree import WitnessEntry
from node.api import contract_models as models
from node.submission import SubmitOutcome


class Sent(Protocol):
    """What became of a request at its operator."""

    @property
    def accepted(self) -> bool:
        """True: the operator has signed for it."""
        ...

    @property
    def answer(self) -> Answer | None:
        """The receipt and what became of the operations; of an accepted request."""
        ...

    @property
    def reason(self) -> str:
        """Why it was not accepted: a stable name."""
        ...

    @property
    def detail(self) -> str:
        """What was wrong and what to do."""
        ...

    @property
    def retry_ms(self) -> int:
        """For a refusal that passes: after how many milliseconds to try again; 0 for one that does not."""
        ...


class Progress(Protocol):
    """How far a request has come."""

    @property
    def status(self) -> models.Rung:
        """How far."""
        ...

    @property
    def rests_on(self) -> str:
        """What that rests on."""
        ...

    @property
    def number(self) -> int | None:
        """Its batch."""
        ...

    @property
    def index(self) -> int | None:
        """Its place in the batch."""
        ...

    @property
    def committed_height(self) -> int | None:
        """Height that committed the batch."""
        ...

    @property
    def final_height(self) -> int | None:
        """Height from which the batch is final."""
        ...


class Operators(Protocol):
    """The way to operators: of this node's own contracts, and of others' over the network."""

    async def send(self, contract_id: bytes, raws: Sequence[bytes]) -> Sequence[Sent]:
        """Bring requests to the contract's operator, in order; one outcome each."""
        ...

    async def status_of(self, contract_id: bytes, sender: bytes, sequence: int) -> Progress | None:
        """Return how far a request has come that holds a sender's operation; None for one that the operator does not know."""
        ...

    async def close(self, contract_id: bytes) -> SubmitOutcome:
        """Bring all that was promised to the chain, then close a contract that this node operates; goes on with it when cancelled.

        Raises `NotFound` for one that it does not operate, `InvalidInput` for one that has ended.
        """
        ...

    async def next_sequence(self, contract_id: bytes, sender: bytes) -> int:
        """Return the number of a sender's next operation. Raises `NotFound` when the operator cannot be asked."""
        ...


class PublishedData(Protocol):
    """Data of batches, from here or from other nodes."""

    async def fetch_for_client(self, commitment: BatchCommitment) -> bytes:
        """Return data that fits the commitment; raises `NotFound`."""
        ...


class Head(Protocol):
    """How far this node has executed what an operator commits."""

    @property
    def number(self) -> int:
        """Batches that were executed here and are right."""
        ...

    @property
    def stage(self) -> str:
        """How it stands; a stable name."""
        ...

    @property
    def detail(self) -> str:
        """More of it."""
        ...

    @property
    def fault(self) -> str:
        """What the operator is guilty of; empty for nothing that is known."""
        ...


class ProvedRequest(Protocol):
    """A request of a batch with the proof that it stands there."""

    @property
    def request(self) -> bytes:
        """The request."""
        ...

    @property
    def proof(self) -> LeafProof:
        """Its leaf and path."""
        ...


class KeptState(Protocol):
    """A state of a contract that this node keeps."""

    @property
    def number(self) -> int:
        """The batch that comes next."""
        ...

    @property
    def pages(self) -> int:
        """Its pages."""
        ...

    @property
    def entries(self) -> int:
        """Its entries."""
        ...

    @property
    def size(self) -> int:
        """Bytes of all pages."""
        ...


class Watcher(Protocol):
    """State of contracts as this node has executed it."""

    def head(self, contract_id: bytes) -> Head | None:
        """Return how far a contract is followed here; None for one that is not."""
        ...

    async def hold_receipt(self, signed: SignedReceipt) -> None:
        """Compare a receipt with its batch, now or when that commits, and challenge a broken one.

        Raises `InvalidInput` for one that is of no use here, `NotFound` when its batch cannot be looked at now.
        """
        ...

    async def states(self, contract_id: bytes) -> Sequence[KeptState]:
        """Return the states of a contract that are kept here, the oldest first."""
        ...

    async def state_page(self, contract_id: bytes, number: int, page: int) -> bytes:
        """Return a page of the state before batch `number`; raises `NotFound`."""
        ...

    async def prove_request(self, contract_id: bytes, number: int, index: int) -> ProvedRequest:
        """Return a request of a batch with its leaf and path; raises `NotFound`."""
        ...

    async def prove_key(self, contract_id: bytes, number: int, key: bytes) -> WitnessEntry:
        """Return a state key's value with its proof under the new root of a batch; raises `NotFound`."""
        ...


class ServedContracts(Protocol):
    """All about contracts that is not in the chain's state."""

    @property
    def operating(self) -> Operators:
        """The way to operators."""
        ...

    @property
    def availability(self) -> PublishedData:
        """Data of batches."""
        ...

    @property
    def watching(self) -> Watcher:
        """State of contracts."""
        ...
