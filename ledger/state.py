# SPDX-License-Identifier: GPL-3.0-or-later
"""The state: typed tables over one ordered map of bytes, and an overlay that collects a block's changes.

A key is the table's prefix and the entry's own key; a value is the canonical encoding of the table's struct. Prefixes differ in their
first byte, so no key of one table begins a key of another.
"""

from collections.abc import Iterator
from typing import Annotated, Any, Generic, Protocol, TypeVar

import msgspec

from ledger.codec import PublicKeyBytes, Uint, Wire, decoder, encode
from ledger.contract_state import Claimed, CommittedBatch, Contract, ForcedRequest
from ledger.crypto.hashing import Tag, tagged_hash
from ledger.emergency import Emergency
from ledger.guardianship import Delegation, Guardians
from ledger.labels import Erasure, Label
from ledger.miners import EpochProgress, EpochRecord, MicroblockFees, MinerHistory, Offence, TermTally
from ledger.patients import KeyGeneration, KeyHolder, Patient, Record
from ledger.sharing import Grant, Listed

V = TypeVar("V", bound=Wire)

MAX_STATE_VALUE_BYTES = 4096
"""The largest entry, a grant of 256 records by way of 16 proxies, takes about 3 600 bytes; a record about 500."""


class Account(Wire, frozen=True):
    """State: an account."""

    nonce: Uint
    """Number of the account's committed transactions; the next one carries this number."""
    balance_microcredit: Uint
    """Balance in millionths of a credit."""


class Institution(Wire, frozen=True):
    """State: a registered institution."""

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
    """Name as shown to people."""
    country: Annotated[str, msgspec.Meta(min_length=2, max_length=2)]
    """ISO 3166-1 alpha-2 code."""
    public_key: PublicKeyBytes
    """Key of the institution's account."""
    encryption_key: PublicKeyBytes
    """Umbral public key that records are shared to."""
    registered_height: Uint
    """Height of the microblock that committed the registration."""


class Accreditation(Wire, frozen=True):
    """State: the right to register as an institution."""

    since_height: Uint
    """Height since which the account is accredited; 0 is the genesis."""


class Authorisation(Wire, frozen=True):
    """State: whether an institution may append to a patient's chain."""

    allowed: bool
    """True while it may."""
    changed_height: Uint
    """Height of the microblock that last changed it."""


class Supply(Wire, frozen=True):
    """State: the sum of all credits, so that conservation (I7) can be checked at any height."""

    minted_microcredit: Uint
    """Credits ever created."""
    burnt_microcredit: Uint
    """Credits ever destroyed."""
    fees_in_flight_microcredit: Uint
    """Fees paid and not yet distributed."""
    contracts_microcredit: Uint
    """Bonds and escrow of all off-chain contracts together."""


class Table(Generic[V]):
    """A named part of the state: key prefix and value type."""

    def __init__(self, name: str, prefix: bytes, kind: type[V]) -> None:
        self.name = name
        self.prefix = prefix
        self.kind = kind
        self.decode = decoder(kind, MAX_STATE_VALUE_BYTES, own=True)


ACCOUNTS = Table("accounts", b"a", Account)
"""Key: address."""
INSTITUTIONS = Table("institutions", b"i", Institution)
"""Key: address."""
ACCREDITATIONS = Table("accreditations", b"c", Accreditation)
"""Key: address."""
PATIENTS = Table("patients", b"p", Patient)
"""Key: address."""
KEY_GENERATIONS = Table("key_generations", b"k", KeyGeneration)
"""Key: patient's address ‖ generation (8 bytes, big-endian)."""
KEY_HOLDERS = Table("key_holders", b"h", KeyHolder)
"""Key: address of a signing key that is or was a patient's."""
AUTHORISATIONS = Table("authorisations", b"u", Authorisation)
"""Key: patient's address ‖ institution's address."""
RECORDS = Table("records", b"r", Record)
"""Key: patient's address ‖ sequence number (8 bytes, big-endian): a patient's records lie side by side, in order."""
LABELS = Table("labels", b"l", Label)
"""Key: patient's address ‖ sequence number of the record ‖ number of the label (8 bytes each, big-endian)."""
ERASURES = Table("erasures", b"x", Erasure)
"""Key: patient's address ‖ sequence number of the record (8 bytes, big-endian) ‖ institution's address."""
GUARDIANS = Table("guardians", b"w", Guardians)
"""Key: patient's address."""
DELEGATIONS = Table("delegations", b"d", Delegation)
"""Key: patient's address ‖ delegate's address."""
GRANTS = Table("grants", b"G", Grant)
"""Key: identifier of the grant."""
PATIENT_GRANTS = Table("patient_grants", b"P", Listed)
"""Key: patient's address ‖ number of the grant (8 bytes, big-endian). Of every grant ever made."""
GRANTEE_GRANTS = Table("grantee_grants", b"R", Listed)
"""Key: grantee's address ‖ identifier of the grant. Of every grant ever made."""
PROXY_GRANTS = Table("proxy_grants", b"X", Listed)
"""Key: proxy's address ‖ identifier of the grant. Until the proxy confirms that its fragment is deleted."""
DELETIONS_OWED = Table("deletions_owed", b"D", Listed)
"""Key: proxy's address ‖ identifier of the grant. From the revocation until the proxy confirms that its fragment is deleted."""
EMERGENCIES = Table("emergencies", b"y", Emergency)
"""Key: patient's address ‖ number of the emergency (8 bytes, big-endian)."""
REVIEWS = Table("reviews", b"q", Listed)
"""Key: patient's address ‖ number of the emergency (8 bytes, big-endian).

From the approval that completes the quorum until the patient calls the emergency justified.
"""
CONTRACTS = Table("contracts", b"C", Contract)
"""Key: identifier of the contract."""
CONTRACT_BATCHES = Table("contract_batches", b"B", CommittedBatch)
"""Key: identifier of the contract ‖ number of the batch (8 bytes, big-endian). Only numbers below `Contract.batch_count` count."""
FORCED_REQUESTS = Table("forced_requests", b"F", ForcedRequest)
"""Key: identifier of the contract ‖ number of the forced request (8 bytes, big-endian). Until it is answered for finally, or paid back."""
CLAIMS = Table("claims", b"K", Claimed)
"""Key: identifier of the contract ‖ account."""
SUPPLY = Table("supply", b"s", Supply)
"""One entry with the empty key."""
MINERS = Table("miners", b"m", MinerHistory)
"""Key: public key. An entry changes only when a keyblock is pinned."""
MINER_VERSIONS = Table("miner_versions", b"n", MinerHistory)
"""Key: public key ‖ inverted number of the epoch (8 bytes): the history as of the keyblock that began the epoch, newest first.

Written for the miners whose history changed at that keyblock; those of the genesis have one of epoch 0.
"""
OFFENCES = Table("offences", b"o", Offence)
"""Key: public key. Written by evidence at once; it enters `MINERS` when the next keyblock is pinned."""
TALLIES = Table("tallies", b"t", TermTally)
"""Key: public key. Of the running epoch; merged into `MINERS` and removed when it ends."""
FEES = Table("fees", b"f", MicroblockFees)
"""Key: place of the microblock in its epoch (8 bytes, big-endian); only microblocks with fees have a row."""
EPOCHS = Table("epochs", b"e", EpochRecord)
"""Key: number of the epoch (8 bytes, big-endian), from 1 on."""
PROGRESS = Table("progress", b"g", EpochProgress)
"""One entry with the empty key."""

TABLES: tuple[Table[Any], ...] = (
    ACCOUNTS,
    INSTITUTIONS,
    ACCREDITATIONS,
    PATIENTS,
    KEY_GENERATIONS,
    KEY_HOLDERS,
    AUTHORISATIONS,
    RECORDS,
    LABELS,
    ERASURES,
    GUARDIANS,
    DELEGATIONS,
    GRANTS,
    PATIENT_GRANTS,
    GRANTEE_GRANTS,
    PROXY_GRANTS,
    DELETIONS_OWED,
    EMERGENCIES,
    REVIEWS,
    CONTRACTS,
    CONTRACT_BATCHES,
    FORCED_REQUESTS,
    CLAIMS,
    SUPPLY,
    MINERS,
    MINER_VERSIONS,
    OFFENCES,
    TALLIES,
    FEES,
    EPOCHS,
    PROGRESS,
)
"""All tables; `Any` because each has its own struct."""

Change = tuple[bytes, bytes | None]
"""A state key and its new encoding; None removes it."""


class StateReader(Protocol):
    """Where the committed state is read from."""

    def get_state(self, key: bytes) -> bytes | None:
        """Return the value of a state key."""

    def scan_state(self, prefix: bytes, start: bytes, limit: int) -> Iterator[tuple[bytes, bytes]]:
        """Yield up to `limit` entries whose keys begin with `prefix`, in order, from key `start` on."""


def numbered_key(patient: bytes, *numbers: int) -> bytes:
    """Return the key of what a patient has by number: a record, a key generation, a grant, a label of a record, an emergency."""
    return patient + b"".join(number.to_bytes(8, "big") for number in numbers)


class State:
    """Reads through to a committed state and keeps changes apart until they are taken by `changes`."""

    def __init__(self, reader: StateReader) -> None:
        self._reader = reader
        self._written: dict[bytes, Wire | None] = {}

    def get(self, table: Table[V], key: bytes) -> V | None:
        """Return the entry, or None."""
        full = table.prefix + key
        if full in self._written:
            value = self._written[full]
            assert value is None or isinstance(value, table.kind)
            return value
        raw = self._reader.get_state(full)
        return None if raw is None else table.decode(raw)

    def put(self, table: Table[V], key: bytes, value: V) -> None:
        """Set the entry."""
        self._written[table.prefix + key] = value

    def delete(self, table: Table[V], key: bytes) -> None:
        """Remove the entry."""
        self._written[table.prefix + key] = None

    def entries(self, table: Table[V]) -> Iterator[tuple[bytes, V]]:
        """Yield all entries of a table in the order of their keys: for small tables."""
        width = len(table.prefix)
        committed = {key for key, _ in self._reader.scan_state(table.prefix, table.prefix, _ALL)}
        written = {key for key in self._written if key.startswith(table.prefix)}
        for key in sorted(committed | written):
            value = self.get(table, key[width:])
            if value is not None:
                yield key[width:], value

    def changes(self) -> tuple[Change, ...]:
        """Return all changes in the order of their keys."""
        written = self._written
        keys = sorted(written)
        return tuple((key, None if (value := written[key]) is None else encode(value)) for key in keys)

    def account(self, address: bytes) -> Account:
        """Return an account; one that was never touched is empty."""
        return self.get(ACCOUNTS, address) or _EMPTY_ACCOUNT

    def supply(self) -> Supply:
        """Return the sums of credits."""
        return self.get(SUPPLY, b"") or _NO_SUPPLY

    def progress(self) -> EpochProgress:
        """Return what the running epoch has come to."""
        progress = self.get(PROGRESS, b"")
        assert progress is not None, "the genesis writes the founding epoch's progress, and nothing removes it"
        return progress


_ALL = 2**62
_EMPTY_ACCOUNT = Account(0, 0)
_NO_SUPPLY = Supply(0, 0, 0, 0)


def scan(reader: StateReader, table: Table[V], prefix: bytes, start: bytes, limit: int) -> Iterator[tuple[bytes, V]]:
    """Yield committed entries of a table whose own keys begin with `prefix`, from own key `start` on, at most `limit`."""
    width = len(table.prefix)
    for key, raw in reader.scan_state(table.prefix + prefix, table.prefix + start, limit):
        yield key[width:], table.decode(raw)


def next_state_digest(previous: bytes, changes: tuple[Change, ...]) -> bytes:
    """Return the running digest after a block's changes; a block that changes nothing leaves it."""
    return tagged_hash(Tag.STATE_CHANGES, previous, encode(changes)) if changes else previous
