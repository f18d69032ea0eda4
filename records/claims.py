# SPDX-License-Identifier: GPL-3.0-or-later
"""What evidence can claim, and how claims are checked.

A claim is checked by a *walk*: a generator that asks for entries of the state by their keys, gets their values, or None for what is not
there, and returns what it found. The same walk runs where evidence is made, where a node answers, and where it is verified, where the file
does; so a file holds exactly the entries that the walk asks for, in its order. Walks read nothing else.
"""

from collections.abc import Generator, Mapping, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any, Protocol, TypeVar

import msgspec

from ledger.blocks import Keyblock
from ledger.chain import Chain
from ledger.codec import Address, Digest, Uint, Wire
from ledger.errors import InvalidInput
from ledger.genesis import Genesis
from ledger.offchain import MAX_OUTCOMES_BYTES, ContractTerms, LeafProof, RequestBytes
from ledger.partial_tree import WitnessEntry
from ledger.state import EPOCHS, PROGRESS, Table, V
from records.access_entries import SignedEntry

MAX_ACCESS_ENTRIES = 1024
"""Entries of one file: with signatures and 64 records each they take at most a megabyte."""

T = TypeVar("T")
Walk = Generator[Sequence[bytes], Sequence[bytes | None], T]


class Fault(StrEnum):
    """Why evidence is refused; the names are stable."""

    MALFORMED = "malformed"
    WRONG_VERSION = "wrong_version"
    WRONG_KEYBLOCK = "wrong_keyblock"
    WRONG_CHAIN = "wrong_chain"
    WRONG_PROOF = "wrong_proof"
    MISSING_ENTRY = "missing_entry"
    SUPERFLUOUS_ENTRY = "superfluous_entry"
    CONTRADICTION = "contradiction"
    BAD_SIGNATURE = "bad_signature"
    NOT_SO = "not_so"
    PENDING = "pending"


class EvidenceRefused(InvalidInput):
    """Evidence that does not prove what it claims; `reason` tells of which kind the fault is."""

    def __init__(self, reason: Fault, detail: str) -> None:
        super().__init__(f"{reason.value}: {detail}")
        self.reason = reason
        self.detail = detail


class RecordClaim(Wire, frozen=True, tag=1):
    """A record stands in a patient's chain."""

    patient: Address
    """The patient."""
    sequence: Uint
    """Place of the record in the patient's chain."""


class HistoryClaim(Wire, frozen=True, tag=2):
    """These are all records of a patient, in order."""

    patient: Address
    """The patient."""


class GrantClaim(Wire, frozen=True, tag=3):
    """A patient has let somebody read records."""

    grant_id: Digest
    """The grant."""


class RevocationClaim(Wire, frozen=True, tag=4):
    """A patient has revoked a grant."""

    grant_id: Digest
    """The grant."""


class AccessClaim(Wire, frozen=True, tag=5):
    """Proxies were asked to re-encrypt under a grant, and did or refused."""

    grant_id: Digest
    """The grant."""
    entries: Annotated[tuple[SignedEntry, ...], msgspec.Meta(min_length=1, max_length=MAX_ACCESS_ENTRIES)]
    """Entries of the proxies' access logs, by proxy and number, each once."""


class LabelClaim(Wire, frozen=True, tag=6):
    """A record was labelled, each time with the patient's permission."""

    patient: Address
    """The patient."""
    sequence: Uint
    """Place of the record in the patient's chain."""


class OperationClaim(Wire, frozen=True, tag=7):
    """An off-chain contract has executed a request, with these outcomes."""

    contract_id: Digest
    """The contract."""
    number: Uint
    """The batch."""
    request: RequestBytes
    """The request, as its author signed it."""
    outcomes: Annotated[bytes, msgspec.Meta(min_length=1, max_length=MAX_OUTCOMES_BYTES)]
    """Encoded outcomes of its operations."""
    proof: LeafProof
    """That its leaf stands in the batch."""


class ContractValueClaim(Wire, frozen=True, tag=8):
    """The state of an off-chain contract had a value under a key at the end of a batch."""

    contract_id: Digest
    """The contract."""
    number: Uint
    """The batch."""
    entry: WitnessEntry
    """State key, value and proof under the batch's new root."""


Claim = (
    RecordClaim
    | HistoryClaim
    | GrantClaim
    | RevocationClaim
    | AccessClaim
    | LabelClaim
    | OperationClaim
    | ContractValueClaim
)


class ReadRequest(Protocol):
    """A request whose shape and signature are right."""

    @property
    def sender(self) -> bytes | None:
        """Address of who signed; None for what the chain itself has forced."""
        ...

    @property
    def first_sequence(self) -> int:
        """Number of its first operation among its sender's."""
        ...

    @property
    def operations(self) -> tuple[Any, ...]:
        """The operations, ready for JSON."""
        ...


class ContractReader(Protocol):
    """Reads what machines write; only words come from it, and the check of a request's signature."""

    def read_request(self, chain_id: bytes, terms: ContractTerms, raw: bytes) -> ReadRequest:
        """Check and read a request. Raises `InvalidInput`."""
        ...

    def read_outcomes(self, raw: bytes) -> tuple[tuple[str, Any], ...]:
        """Return of each operation why it was refused, empty if it took effect, and what it answers. Raises `InvalidInput`."""
        ...

    def read_entry(self, terms: ContractTerms, key: bytes, value: bytes | None) -> tuple[str, Any]:
        """Return a state key and its value for people."""
        ...


class Scene(msgspec.Struct, frozen=True):
    """What a claim is checked against."""

    keyblock: Keyblock
    """The keyblock under whose state root the entries stand."""
    genesis: Genesis
    """The genesis of the chain."""
    chain: Chain
    """The chain; the keyblock's miner has signed for its identifier."""
    reader: ContractReader | None = None
    """Reads what off-chain contracts write; claims about them need one."""


class Moment(msgspec.Struct, frozen=True):
    """When the state was as it is proved."""

    epoch: int
    """Number of the epoch that began then."""
    height: int
    """Height of the microblock after which it was so."""


class Found(msgspec.Struct, frozen=True):
    """What a walk has found."""

    proven: tuple[str, ...]
    """What is proven, in plain words."""
    not_proven: tuple[str, ...]
    """What a reader might take for proven and is not."""
    facts: Mapping[str, object]
    """The same for programs: entries of the state by what they are."""


# ------------------------------------------------------------------ reading


def entry(table: Table[V], key: bytes) -> Walk[V | None]:
    """Ask for an entry that may be absent."""
    (value,) = yield from entries(table, [key])
    return value


def entries(table: Table[V], keys: Sequence[bytes]) -> Walk[list[V | None]]:
    """Ask for several entries of a table."""
    if not keys:
        return []
    raws = yield [table.prefix + key for key in keys]
    return [None if raw is None else _decode(table, raw) for raw in raws]


def present(table: Table[V], key: bytes, what: str) -> Walk[V]:
    """Ask for an entry that the claim needs. Raises `EvidenceRefused`."""
    value = yield from entry(table, key)
    return need(value, what)


def need(value: V | None, what: str) -> V:
    """Return an entry that the claim needs. Raises `EvidenceRefused`."""
    if value is None:
        detail = f"in the state that the keyblock stands for there is no {what}"
        raise EvidenceRefused(Fault.NOT_SO, f"{detail}; what was committed lately is there after two more keyblocks")
    return value


def require(holds: object, detail: str) -> None:
    """Refuse entries that contradict each other. Raises `EvidenceRefused`."""
    if not holds:
        raise EvidenceRefused(Fault.CONTRADICTION, detail)


def _decode(table: Table[V], raw: bytes) -> V:
    try:
        return table.decode(raw)
    except InvalidInput as error:
        raise EvidenceRefused(Fault.MALFORMED, f"entry of table {table.name}: {error}") from error


def moment(scene: Scene) -> Walk[Moment]:
    """Find out when the state was as it is proved: the keyblock names a microblock by its hash only."""
    keyblock = scene.keyblock
    progress = yield from present(PROGRESS, b"", "running epoch")
    if progress.epoch == 0:
        require(
            keyblock.previous == scene.chain.id, "the state is that of the genesis, the keyblock is not the first one"
        )
        return Moment(0, 0)
    number = progress.epoch
    record = yield from present(EPOCHS, number.to_bytes(8, "big"), f"epoch {number}")
    fits = (record.keyblock, record.root_hash) == (keyblock.previous, keyblock.microblock)
    require(fits, f"epoch {number}, which the state is of, did not begin with the keyblock before this one")
    return Moment(number, record.root_height)


# ------------------------------------------------------------------ in words


def when(timestamp_ms: int) -> str:
    """Return a time for people, in UTC; what no calendar has, as a number."""
    try:
        return datetime.fromtimestamp(timestamp_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (OverflowError, ValueError, OSError):
        return f"{timestamp_ms} ms after 1970"


def counted(number: int, noun: str) -> str:
    """Return a number with its noun."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
