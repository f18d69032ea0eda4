# SPDX-License-Identifier: GPL-3.0-or-later
"""What people do with a node, each in one call: register, authorise, transfer, write and read records.

Everything secret happens here, at the caller's: signing, sealing, opening. The node sees signed transactions and encrypted blobs.
"""

import re
import secrets
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from ledger.bodies import AuthoriseAuthor, Body, CommitRecord, RegisterInstitution, RegisterPatient, Transfer
from ledger.crypto import chameleon
from ledger.crypto.reencryption import ReencryptionKey
from ledger.errors import InvalidInput, Rejection, RejectionReason, SpchainError
from ledger.genesis import Genesis, chain_id, decode_genesis
from ledger.patients import (
    PatientMicroblock,
    RecordEnvelope,
    envelope_digest,
    record_id,
)
from ledger.transactions import sign_transaction, transaction_id
from node.api import models
from node.client import NodeClient
from node.http_client import ApiError
from node.identity import Identity
from node.key_ring import KeyRing
from node.parties import registration
from node.record_checks import check_record, fetch_blob
from records.envelope import SealedRecord, open_sealed, seal

EXPIRY_MICROBLOCKS = 1000
"""How far ahead transactions expire: minutes under load, hours when the network idles."""
RECORDS_AT_ONCE = 100
"""Records that are submitted together: few enough to show progress, and another author loses us at most as many."""
MAX_INSTITUTION_NAME_CHARACTERS = 128
"""What a registration can hold."""
DEFAULT_TIMEOUT_S = 60.0
NONCE_ATTEMPTS = 4
"""Tries of one transaction whose nonce somebody else has taken with the same key; an operator's node takes one a second."""
_WAIT_MS = 10_000  # one request waits this long at most, so that progress can be shown between two
_PAUSE_S = 0.1


class CommitTimeout(SpchainError):
    """A transaction was taken and is not committed yet; it may still commit until its expiry."""

    def __init__(self, identifier: bytes, timeout_s: float) -> None:
        super().__init__(
            f"transaction {identifier.hex()} is not committed after {timeout_s:g} s; it may still commit: "
            f"spchain tx show {identifier.hex()}"
        )
        self.identifier = identifier


class Committed(models.Model):
    """A transaction that took effect."""

    id: models.Hex
    """Its identifier."""
    height: int
    """Height of the microblock that committed it."""


@dataclass(frozen=True, slots=True)
class NetworkRules:
    """What signing for a network needs; checked once, then kept."""

    chain_id: bytes
    """Identifier of the chain."""
    genesis: Genesis
    """The genesis that it is the hash of."""


def network_rules(client: NodeClient) -> NetworkRules:
    """Ask a node for its network, and check that the identifier is the hash of the genesis. Raises `InvalidInput`."""
    answer = client.genesis()
    genesis = decode_genesis(answer.raw)
    if chain_id(genesis) != answer.chain_id:
        raise InvalidInput(f"the node at {client.url} names a chain that is not that of its genesis; use another node")
    return NetworkRules(answer.chain_id, genesis)


class Actor:
    """Someone who signs, at one node. Keeps count of the own nonce between calls, so that many calls need few reads."""

    def __init__(
        self,
        client: NodeClient,
        keys: Identity | KeyRing,
        *,
        fee_microcredit: int | None = None,
        rules: NetworkRules | None = None,
    ) -> None:
        self.client = client
        self.keys = keys if isinstance(keys, KeyRing) else KeyRing((keys,))
        self.identity = self.keys.newest
        self.rules = rules or network_rules(client)
        minimum = self.rules.genesis.parameters.minimum_fee_microcredit
        self._fee_microcredit = minimum if fee_microcredit is None else fee_microcredit

    def sign(self, bodies: Sequence[Body]) -> list[bytes]:
        """Return signed transactions with the account's next nonces."""
        nonce = self.client.account(self.identity.address).next_nonce
        reach = min(EXPIRY_MICROBLOCKS, self.rules.genesis.parameters.maximum_expiry_microblocks)
        expiry_height = self.client.status().height + reach
        return [
            sign_transaction(
                self.rules.chain_id,
                self.identity.signing,
                nonce=nonce + index,
                fee_microcredit=self._fee_microcredit,
                expiry_height=expiry_height,
                body=body,
            )
            for index, body in enumerate(bodies)
        ]

    def commit(self, body: Body, timeout_s: float = DEFAULT_TIMEOUT_S) -> Committed:
        """Sign, submit and wait. Raises `Rejection`, `CommitTimeout`, `ApiError`, `NodeUnreachable`."""
        return self.commit_all([body], timeout_s)[0]

    def commit_all(self, bodies: Sequence[Body], timeout_s: float = DEFAULT_TIMEOUT_S) -> list[Committed]:
        """Sign, submit and wait for all. Raises as `commit`.

        A node sends transactions of its own from its institution's account, so a nonce may be taken between asking for it and using it. A
        single transaction is then signed anew, for what was refused so is nowhere under way; of several, some may be.
        """
        attempts = NONCE_ATTEMPTS if len(bodies) == 1 else 1
        while True:
            attempts -= 1
            try:
                return submit_and_wait(self.client, self.sign(bodies), timeout_s)
            except Rejection as rejected:
                if not attempts or rejected.reason is not RejectionReason.NONCE_USED:
                    raise

    def register_institution(self, name: str, country: str, timeout_s: float = DEFAULT_TIMEOUT_S) -> Committed:
        """Register the own, accredited account as an institution. Raises `InvalidInput` for a name or country that no chain takes."""
        if not 1 <= len(name) <= MAX_INSTITUTION_NAME_CHARACTERS or not name.isprintable():
            limit = MAX_INSTITUTION_NAME_CHARACTERS
            raise InvalidInput(
                f"name {name[:limit]!r}: an institution's name has 1 to {limit} characters that can be shown"
            )
        if re.fullmatch(r"[A-Z]{2}", country) is None:
            raise InvalidInput(f"country {country!r}: give two capital letters (ISO 3166-1 alpha-2), as AT for Austria")
        body = RegisterInstitution(name, country, self.identity.public.reencryption_key)
        return self.commit(body, timeout_s)

    def register_patient(
        self, patient: Identity, allowance_microcredit: int, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> Committed:
        """Register a patient whose keys are at hand, as when the patient stands at the desk with a card."""
        return self.commit(self.patient_body(patient, allowance_microcredit), timeout_s)

    def patient_body(self, patient: Identity, allowance_microcredit: int) -> RegisterPatient:
        """Return a registration with the patient's consent."""
        return registration(self.rules.chain_id, patient, self.identity.address, allowance_microcredit)

    def authorise(
        self,
        institution: bytes,
        *,
        allowed: bool = True,
        patient: bytes | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
    ) -> Committed:
        """As a patient, or a delegate of `patient`, allow or forbid an institution to append records."""
        return self.commit(AuthoriseAuthor(patient or self.keys.identifier, institution, allowed), timeout_s)

    def transfer(self, recipient: bytes, amount_microcredit: int, timeout_s: float = DEFAULT_TIMEOUT_S) -> Committed:
        """Move credits."""
        return self.commit(Transfer(recipient, amount_microcredit), timeout_s)

    def put_record(
        self, patient: bytes, bundle: bytes, status: str = "final", timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> "WrittenRecord":
        """Seal a validated bundle to its patient, hand the blob in, commit the record and wait."""
        return self.commit_records(patient, self.prepare_records(patient, [bundle], status), timeout_s)[0]

    def prepare_records(
        self, patient: bytes, bundles: Iterable[bytes], status: str = "final"
    ) -> list["PreparedRecord"]:
        """Seal validated bundles and hand their blobs in; nothing is on the chain yet, and one bundle at a time in memory."""
        keys = self.client.patient(patient)
        prepared = []
        for bundle in bundles:
            sealed = seal(bundle, keys.reencryption_key)
            blob_id = self.client.put_blob(sealed.blob)
            if blob_id != sealed.blob_id:
                text = f"the node at {self.client.url} kept blob {blob_id.hex()} instead of {sealed.blob_id.hex()}"
                raise InvalidInput(f"{text}; use another node")
            envelope = fresh_envelope(self.identity.address, sealed, status)
            prepared.append(PreparedRecord(envelope, sealed.bundle_bytes))
        return prepared

    def commit_records(
        self,
        patient: bytes,
        prepared: Sequence["PreparedRecord"],
        timeout_s: float = DEFAULT_TIMEOUT_S,
        done: Callable[[int], None] | None = None,
    ) -> list["WrittenRecord"]:
        """Commit records as the patient's next ones, in their order, many at a time; `done` is told how many more are.

        Raises `Rejection` when somebody else has appended meanwhile (`wrong_sequence`): the rest may be committed again.
        """
        written = []
        for start in range(0, len(prepared), RECORDS_AT_ONCE):
            part = prepared[start : start + RECORDS_AT_ONCE]
            bodies = chain_records(self.client.patient(patient), [item.envelope for item in part])
            committed = self.commit_all(bodies, timeout_s)
            for body, item, receipt in zip(bodies, part, committed, strict=True):
                written.append(
                    WrittenRecord(
                        record_id=record_id(body.microblock),
                        sequence=body.microblock.sequence,
                        patient=patient,
                        blob_id=item.envelope.blob_id,
                        blob_bytes=item.envelope.blob_bytes,
                        bundle_bytes=item.bundle_bytes,
                        transaction_id=receipt.id,
                        height=receipt.height,
                    )
                )
            if done is not None:
                done(len(part))
        return written


@dataclass(frozen=True, slots=True)
class PreparedRecord:
    """A record whose blob is kept and which is not on the chain yet."""

    envelope: RecordEnvelope
    """What will be committed."""
    bundle_bytes: int
    """Size of the bundle."""


class WrittenRecord(models.Model):
    """A record that was committed."""

    record_id: models.Hex
    """Identifier."""
    sequence: int
    """Position in the patient's chain."""
    patient: models.Hex
    """The patient's address."""
    blob_id: models.Hex
    """Content address of the ciphertext."""
    blob_bytes: int
    """Size of the ciphertext."""
    bundle_bytes: int
    """Size of the bundle."""
    transaction_id: models.Hex
    """The transaction that committed it."""
    height: int
    """Height of the microblock that committed it."""


def fresh_envelope(author: bytes, sealed: SealedRecord, status: str = "final") -> RecordEnvelope:
    """Return the envelope of a new record. Raises `InvalidInput` for a status that new records cannot have."""
    if status not in ("preliminary", "final"):
        raise InvalidInput(f"status {status!r}; a new record is 'preliminary' or 'final'")
    return RecordEnvelope(
        blob_id=sealed.blob_id,
        capsule_digest=sealed.capsule_digest,
        blob_bytes=sealed.blob_bytes,
        author=author,
        status="preliminary" if status == "preliminary" else "final",
        label="",
        replaced_by=b"",
    )


def chain_records(patient: models.Patient, envelopes: Iterable[RecordEnvelope]) -> list[CommitRecord]:
    """Return the next records of a patient's chain, each linked to the one before; openings are drawn afresh."""
    bodies = []
    previous, sequence = patient.last_record, patient.record_count
    for envelope in envelopes:
        opening = chameleon.draw_opening(secrets.token_bytes(chameleon.ENTROPY_BYTES))
        link = PatientMicroblock(
            patient=patient.address,
            patient_keyblock=patient.keyblock_hash,
            previous=previous,
            sequence=sequence,
            author=envelope.author,
            chameleon_hash=chameleon.hash_message(envelope_digest(envelope), opening),
        )
        bodies.append(CommitRecord(link, envelope, opening))
        previous, sequence = record_id(link), sequence + 1
    return bodies


def read_record(client: NodeClient, keys: Identity | KeyRing, sequence: int) -> tuple[models.Record, bytes]:
    """Fetch a record of the patient's own, check it against the chain's entry, and decrypt it with the keys of its generation.

    Raises:
        InvalidInput: something that the node handed out does not fit together; names what.
    """
    ring = keys if isinstance(keys, KeyRing) else KeyRing((keys,))
    record = client.record(ring.identifier, sequence)
    if len(ring.generations) == 1:
        return record, open_record(client, record, ring.newest.reencryption)
    generations = {entry.generation: entry.reencryption_key for entry in client.consent.keys(ring.identifier)}
    return record, open_record(client, record, ring.holding(generations.get(record.generation, b"")).reencryption)


def open_record(client: NodeClient, record: models.Record, key: ReencryptionKey) -> bytes:
    """Check a record, fetch its blob and decrypt it with the patient's key of its generation. Raises `InvalidInput`, `ApiError`."""
    check_record(client, record)
    blob = fetch_blob(client, record)
    return open_sealed(blob, key)


def submit_and_wait(client: NodeClient, raws: Sequence[bytes], timeout_s: float = DEFAULT_TIMEOUT_S) -> list[Committed]:
    """Submit transactions and wait until all took effect.

    Raises:
        Rejection: one was refused, at admission or in its microblock.
        CommitTimeout: one is not committed in time.
    """
    deadline = time.monotonic() + timeout_s
    done: dict[bytes, Committed] = {}
    identifiers = [transaction_id(raw) for raw in raws]
    pending = dict(zip(identifiers, raws, strict=True))
    # Another node may hold it already, or this one after a restart: its nonce is then under way, as it should be.
    under_way = {RejectionReason.NOT_REPLICATED.value}
    while pending:
        left_ms = max(0, int((deadline - time.monotonic()) * 1000))
        # Submitting again is safe: the same transaction takes effect once, and its receipt comes back.
        for outcome in client.submit(list(pending.values()), wait_ms=min(left_ms, _WAIT_MS)):
            receipt = outcome.receipt
            if receipt is not None and not receipt.reason:
                done[outcome.id] = Committed(id=outcome.id, height=receipt.height)
                pending.pop(outcome.id, None)
            elif receipt is not None:
                detail = f"transaction {outcome.id.hex()} had no effect at height {receipt.height}"
                raise rejection(receipt.reason, detail)
            elif not outcome.accepted and outcome.reason not in under_way:
                raise rejection(outcome.reason, outcome.detail)
        under_way.add(RejectionReason.NONCE_USED.value)
        if pending and not left_ms:
            raise CommitTimeout(next(iter(pending)), timeout_s)
        if pending:
            time.sleep(_PAUSE_S)
    return [done[identifier] for identifier in identifiers]


def rejection(reason: str, detail: str) -> SpchainError:
    """Return the typed error of a rejection; reasons of newer nodes are passed on as they are."""
    try:
        return Rejection(RejectionReason(reason), detail)
    except ValueError:
        return ApiError(422, reason, detail, "")
