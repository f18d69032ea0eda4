# SPDX-License-Identifier: GPL-3.0-or-later
"""Off-chain contracts as the chain sees them: commitments of batches, proofs of fraud, and what replays a request.

A *request* is what a user signs: some operations in order. An operator executes requests and commits them in *batches*; a batch is a
list of leaves, one per request, each with the state root after it. So whoever disputes a leaf needs the leaf before it and the state
entries that this one request touches, never the rest of the batch.

The ledger cannot import the machines that requests run on; they come in through `MachineRegistry`.
"""

from typing import Annotated, Protocol

import msgspec

from ledger.codec import Address, Digest, PublicKeyBytes, SignatureBytes, Uint, Wire, encode
from ledger.crypto.hashing import Tag, tagged_hash
from ledger.crypto.keys import ADDRESS_BYTES, PrivateKey, verify
from ledger.crypto.merkle import verify_merkle_proof
from ledger.errors import InvalidInput
from ledger.partial_tree import MAX_WITNESS_ENTRIES, WitnessEntry

MAX_OPERATIONS = 64
"""Operations in one request: what one signature pays for, and what one challenge replays."""
MAX_OPERATION_BYTES = 1024
"""Room for one call; operations name things by digests and carry no documents."""
MAX_OUTCOMES_BYTES = MAX_OPERATIONS * 128
"""Outcomes of one request: each has a code of up to 32 characters and a result of up to 64 bytes."""
MAX_REQUEST_BYTES = 8 * 1024
"""64 operations of about 120 bytes; travels whole in a proof of fraud."""
MAX_PARAMETERS_BYTES = 1024
"""What a contract is opened with."""
MAX_FORCED = 16
"""Forced requests that one batch answers for; keeps a commitment below 1 KiB."""
MAX_BATCH_LEAVES = 4096
"""Requests in one batch: 40 000 operations at ten each; a Merkle path then has at most 12 steps."""
MAX_PATH = 12
"""log₂ of `MAX_BATCH_LEAVES`."""
MAX_DATA_BYTES = 1024 * 1024
"""Data of one batch; a node answers requests for data with up to 4 MiB."""
MAX_WITNESS_BYTES = 36 * 1024
"""State proofs that one request may need. Execution counts them and refuses what would not fit, so any request can be challenged."""
MAX_FRAUD_PROOF_BYTES = 48 * 1024
"""A request, two leaves with their paths, and the state proofs."""
CHAIN = bytes(ADDRESS_BYTES)
"""The sender of requests that the chain itself makes; no key has this address."""

MachineName = Annotated[str, msgspec.Meta(pattern=r"\A[a-z][a-z0-9_]{0,31}\Z")]
"""Name of a state machine."""
MachineVersion = Annotated[int, msgspec.Meta(ge=1, le=65535)]
"""Version of a state machine: other rules are another version."""
Index = Annotated[int, msgspec.Meta(ge=0, lt=MAX_BATCH_LEAVES)]
"""Place of a leaf in its batch."""
Path = Annotated[tuple[Digest, ...], msgspec.Meta(max_length=MAX_PATH)]
"""Siblings from a leaf up to the root."""
OperationBytes = Annotated[bytes, msgspec.Meta(min_length=1, max_length=MAX_OPERATION_BYTES)]
"""Canonical encoding of one operation of a machine."""
OperationList = Annotated[tuple[OperationBytes, ...], msgspec.Meta(min_length=1, max_length=MAX_OPERATIONS)]
"""Operations of one request, in order."""
RequestBytes = Annotated[bytes, msgspec.Meta(min_length=1, max_length=MAX_REQUEST_BYTES)]
"""A request as it was received."""


class InvalidRequest(InvalidInput):
    """A request that no operator may put into a batch; the text says why."""


# ---------------------------------------------------------------- contracts and what the chain asks of them


class ContractTerms(Wire, frozen=True):
    """What stays the same as long as a contract lives."""

    contract_id: Digest
    """Its identifier."""
    machine: MachineName
    """Name of the state machine."""
    version: MachineVersion
    """Version of the machine."""
    parameters: Annotated[bytes, msgspec.Meta(max_length=MAX_PARAMETERS_BYTES)]
    """The machine's parameters, in its own encoding."""
    operator: PublicKeyBytes
    """Key that signs receipts and commits batches."""


class Deposit(Wire, frozen=True, tag=0):
    """The chain's own operation: credits were paid into the contract's escrow for an account."""

    account: Address
    """The account that may use them inside the contract."""
    amount_microcredit: Uint
    """Amount in millionths of a credit."""


class ChainOperations(Wire, frozen=True, tag=2):
    """A request that the chain makes; unsigned, since it counts only where the chain has forced it."""

    contract_id: Digest
    """The contract."""
    first_sequence: Uint
    """Number of operations that the chain has forced before; each counts once, in order."""
    operations: OperationList
    """The operations."""


# ---------------------------------------------------------------- batches


class RequestLeaf(Wire, frozen=True):
    """What an operator says about one request; leaf of a batch's Merkle tree."""

    request_digest: Digest
    """Tagged hash of the request's bytes."""
    time_ms: Uint
    """The operator's time, in milliseconds since 1970 (UTC); never before the leaf before."""
    operation_total: Uint
    """Operations of the batch up to and with this request."""
    outcomes_digest: Digest
    """Tagged hash of the outcomes of its operations."""
    root: Digest
    """Root of the contract's state after it."""


class ForcedPlace(Wire, frozen=True):
    """Where a batch answers for a forced request."""

    request_digest: Digest
    """Tagged hash of the request's bytes."""
    index: Index
    """Place of its leaf."""


class BatchCommitment(Wire, frozen=True):
    """What the chain keeps of a batch."""

    contract_id: Digest
    """The contract."""
    number: Uint
    """Number of the batch, from 0."""
    previous_root: Digest
    """Root of the contract's state before; the new root of the batch before."""
    new_root: Digest
    """Root after; that of the last leaf."""
    leaves_root: Digest
    """Merkle root of the leaves."""
    leaf_count: Annotated[int, msgspec.Meta(ge=1, le=MAX_BATCH_LEAVES)]
    """Number of leaves."""
    operation_count: Uint
    """Number of operations; the total of the last leaf."""
    data_digest: Digest
    """Tagged hash of the published data."""
    data_bytes: Annotated[int, msgspec.Meta(ge=1, le=MAX_DATA_BYTES)]
    """Size of the published data."""
    from_ms: Uint
    """End of the batch before, in milliseconds since 1970 (UTC); no leaf is earlier."""
    until_ms: Uint
    """End of this batch; no leaf is later."""
    forced: Annotated[tuple[ForcedPlace, ...], msgspec.Meta(max_length=MAX_FORCED)]
    """Forced requests that this batch answers for, in the order of their places."""


class RequestReceipt(Wire, frozen=True):
    """What an operator promises: this leaf, at this place."""

    contract_id: Digest
    """The contract."""
    number: Uint
    """The batch."""
    index: Index
    """Place in the batch."""
    leaf: RequestLeaf
    """The leaf."""


class SignedReceipt(Wire, frozen=True):
    """A promise that can be held against the operator."""

    receipt: RequestReceipt
    """The promise."""
    signature: SignatureBytes
    """The operator's signature of it on this chain."""


# ---------------------------------------------------------------- fraud


class LeafProof(Wire, frozen=True):
    """A leaf of a committed batch, and that it is one."""

    index: Index
    """Place in the batch."""
    leaf: RequestLeaf
    """The leaf."""
    path: Path
    """Merkle path to the commitment's root of leaves."""


class WrongExecution(Wire, frozen=True, tag=1):
    """A leaf is not what its request comes to, or the request may not be there at all."""

    request: RequestBytes
    """The request."""
    previous: LeafProof | None
    """The leaf before; nil for the first of a batch."""
    disputed: LeafProof
    """The wrong leaf."""
    witness: Annotated[tuple[WitnessEntry, ...], msgspec.Meta(max_length=MAX_WITNESS_ENTRIES)]
    """Every state entry that the request touches, as it was before, in the order of the keys."""


class WrongEnd(Wire, frozen=True, tag=2):
    """A commitment does not end as its last leaf does."""

    last: LeafProof
    """The last leaf."""


class WrongForced(Wire, frozen=True, tag=3):
    """A commitment claims to answer for a forced request where another one stands."""

    entry: Annotated[int, msgspec.Meta(ge=0, lt=MAX_FORCED)]
    """Which entry of the commitment's list."""
    found: LeafProof | None
    """The leaf at that place; nil if the batch ends before it."""


class BrokenReceipt(Wire, frozen=True, tag=4):
    """A batch has another leaf, or none, where a receipt promised one."""

    receipt: SignedReceipt
    """The promise."""
    found: LeafProof | None
    """The leaf at that place; nil if the batch ends before it."""


FraudProof = WrongExecution | WrongEnd | WrongForced | BrokenReceipt


# ---------------------------------------------------------------- what replays a request


class Place(msgspec.Struct, frozen=True):
    """Where and when a request is executed."""

    number: int
    """The batch."""
    index: int
    """Place in the batch."""
    time_ms: int
    """Time in its leaf."""
    is_forced: bool
    """Whether the batch answers for it as a forced one."""


class PreState(Protocol):
    """The contract's state before a request."""

    def get(self, key: bytes) -> bytes | None:
        """Return the value of a state key."""

    def steps(self, key: bytes) -> int:
        """Return how many steps the proof of a key has: what disputing it costs."""


class Replay(msgspec.Struct, frozen=True):
    """What a request comes to."""

    operation_count: int
    """Its operations."""
    outcomes_digest: bytes
    """Tagged hash of their outcomes."""
    changes: tuple[tuple[bytes, bytes | None], ...]
    """State keys that changed, with the new value or None, in the order of the keys."""


class PayableKeys(msgspec.Struct, frozen=True):
    """Where a contract's state says what an account may take out; values are canonical integers of microcredits."""

    withdrawn: bytes
    """Key of all that the account has withdrawn so far, in sum."""
    balance: bytes
    """Key of what the account holds inside; paid out when the contract closes."""


class MachineRegistry(Protocol):
    """The machines that a node ships; the same on every node of a network."""

    def check_terms(self, terms: ContractTerms) -> None:
        """Check that a contract can be opened: machine, version and parameters are known. Raises `InvalidInput`."""

    def payable_keys(self, terms: ContractTerms, account: bytes) -> PayableKeys | None:
        """Return the state keys of an account's credits; None for a machine that takes no deposits. Raises `InvalidInput`."""

    def check_request(self, chain_id: bytes, contract_id: bytes, request: bytes) -> None:
        """Check shape and signature of a request. Raises `InvalidRequest`. One signature."""

    def replay(self, chain_id: bytes, terms: ContractTerms, place: Place, request: bytes, state: PreState) -> Replay:
        """Execute a request on a state; raises `InvalidRequest` if it may not be in a batch at all."""


# ---------------------------------------------------------------- digests and leaves


def request_digest(request: bytes) -> bytes:
    """Return the identifier of a request's bytes."""
    return tagged_hash(Tag.OFFCHAIN_REQUEST, request)


def deposit_request(contract_id: bytes, sequence: int, account: bytes, amount_microcredit: int) -> bytes:
    """Return the request by which the chain tells a contract of a deposit."""
    return encode(ChainOperations(contract_id, sequence, (encode(Deposit(account, amount_microcredit)),)))


def data_digest(data: bytes) -> bytes:
    """Return the digest under which the data of a batch is published."""
    return tagged_hash(Tag.OFFCHAIN_DATA, data)


def check_commitment(commitment: BatchCommitment) -> None:
    """Check what a commitment shows by itself: what the chain asks before it takes one. Raises `InvalidInput`."""
    number = commitment.number
    if commitment.from_ms > commitment.until_ms:
        raise InvalidInput(f"batch {number} ends at {commitment.until_ms} ms, before it begins at {commitment.from_ms}")
    if not commitment.leaf_count <= commitment.operation_count <= commitment.leaf_count * MAX_OPERATIONS:
        detail = f"{commitment.operation_count} operations in {commitment.leaf_count} requests"
        raise InvalidInput(f"batch {number} has {detail}; a request has 1 to {MAX_OPERATIONS}")
    places = [place.index for place in commitment.forced]
    if places != sorted(set(places)) or (places and places[-1] >= commitment.leaf_count):
        raise InvalidInput(
            f"batch {number}: its forced requests are not in the order of their places, or beyond its end"
        )


def is_forced(commitment: BatchCommitment, index: int, digest: bytes) -> bool:
    """Tell whether a commitment answers for a forced request at a place."""
    return ForcedPlace(digest, index) in commitment.forced


def holds_leaf(commitment: BatchCommitment, proof: LeafProof) -> bool:
    """Tell whether a leaf stands at its place of a committed batch."""
    return verify_merkle_proof(
        commitment.leaves_root, encode(proof.leaf), proof.index, commitment.leaf_count, proof.path
    )


def _receipt_digest(chain_id: bytes, receipt: RequestReceipt) -> bytes:
    return tagged_hash(Tag.OFFCHAIN_RECEIPT_SIGNATURE, chain_id, encode(receipt))


def sign_receipt(chain_id: bytes, key: PrivateKey, receipt: RequestReceipt) -> SignedReceipt:
    """Return the operator's promise; the same one gets the same bytes."""
    return SignedReceipt(receipt, key.sign(_receipt_digest(chain_id, receipt)))


def is_signed_receipt(chain_id: bytes, operator: bytes, signed: SignedReceipt) -> bool:
    """Tell whether the operator's key has signed a receipt for this chain."""
    return verify(operator, _receipt_digest(chain_id, signed.receipt), signed.signature)
