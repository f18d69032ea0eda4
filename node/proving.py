# SPDX-License-Identifier: GPL-3.0-or-later
"""What clients do with proofs of a node that they do not trust: make evidence files, and check lists of records.

Everything that the node gives is checked here against the keyblock, whose hash the user compares with another source.
"""

import time
from collections.abc import Iterable, Sequence

import msgspec

from contracts.reading import Reader
from contracts.shipped import MACHINES
from ledger.blocks import SignedKeyblock, keyblock_hash
from ledger.codec import decode, encode
from ledger.errors import InvalidInput, NotFound, SpchainError
from ledger.patients import PatientMicroblock, Record, RecordEnvelope
from ledger.state import PATIENTS, PROGRESS, RECORDS, numbered_key
from ledger.state_tree import MAX_STATE_PROOF_BYTES, StateProof
from node.api import models, proof_models
from node.client import NodeClient
from node.http_client import ApiError
from node.record_checks import check_record
from records.access_entries import AccessPage, is_own_read
from records.claims import MAX_ACCESS_ENTRIES, AccessClaim, Claim, EvidenceRefused, Fault
from records.evidence import Findings, StateEntry, check_entry, gather
from records.history import HistoryRefused, check_history

MAX_KEYBLOCK_BYTES = 1024
"""A signed keyblock takes about 420 bytes."""
MAX_RECORD_BYTES = 4096
"""A record of the state takes about 500 bytes, at most 1 KB with the longest label."""
_ATTEMPTS = 5
"""Beginnings anew because a keyblock was pinned in between; even long histories take few seconds, keyblocks come every 15 or more."""
_PAUSE_S = 1.0


class KeyblockChanged(SpchainError):
    """The node pinned another keyblock while evidence was made; begin anew."""


class NothingPinned(NotFound):
    """The network has no keyblock to prove against yet; the text says when to come back."""


class ProvedState:
    """The state that a node's newest pinned keyblock stands for, entry by entry, each checked."""

    def __init__(self, client: NodeClient) -> None:
        """Ask for the keyblock. Raises `NothingPinned`, `ApiError`, `EvidenceRefused`."""
        self._client = client
        first = self._ask([PROGRESS.prefix])
        self.signed = decode(SignedKeyblock, first.keyblock, MAX_KEYBLOCK_BYTES)
        """The keyblock."""
        self.keyblock_hash = keyblock_hash(self.signed.keyblock)
        """Its hash, computed here."""
        self.epoch = first.epoch
        """The epoch that it began, as the node says."""
        self.height = first.height
        """Height of the microblock after which the state was so, as the node says."""

    def fetch(self, keys: Sequence[bytes]) -> list[StateEntry]:
        """Return proved entries. Raises `KeyblockChanged`, `EvidenceRefused`."""
        found: list[StateEntry] = []
        for start in range(0, len(keys), proof_models.MAX_PROOF_KEYS):
            part = keys[start : start + proof_models.MAX_PROOF_KEYS]
            page = self._ask(part)
            if page.keyblock != encode(self.signed):
                raise KeyblockChanged(f"the node pinned keyblock {page.keyblock_hash.hex()} in between; try again")
            if len(page.entries) != len(part):
                raise EvidenceRefused(Fault.MISSING_ENTRY, f"the node gave {len(page.entries)} of {len(part)} entries")
            for key, given in zip(part, page.entries, strict=True):
                entry = StateEntry(given.key, given.value, decode(StateProof, given.proof, MAX_STATE_PROOF_BYTES))
                check_entry(self.signed.keyblock.state_root, key, entry)
                found.append(entry)
        return found

    def _ask(self, keys: Sequence[bytes]) -> proof_models.Proofs:
        try:
            return self._client.proofs(keys)
        except ApiError as error:
            if error.reason == "no_keyblock":
                raise NothingPinned(f"{error.detail}; {error.remedy}") from error
            raise


def export(client: NodeClient, claim: Claim, wait_s: float = 0) -> tuple[bytes, Findings]:
    """Make an evidence file from what a node gives.

    What was committed lately is proved two keyblocks later: with `wait_s` this waits for them.

    Raises:
        EvidenceRefused: the claim is not so (yet), or the node gave something false.
        NothingPinned: there is no keyblock yet.
    """
    genesis = client.genesis().raw
    deadline = time.monotonic() + wait_s
    changes = 0
    while True:
        refused: SpchainError
        try:
            state = ProvedState(client)
            return gather(genesis, state.signed, claim, state.fetch, Reader(MACHINES))
        except KeyblockChanged:
            changes += 1
            if changes == _ATTEMPTS:
                raise
            continue
        except NothingPinned as error:
            refused = error
        except EvidenceRefused as error:
            if error.reason not in (Fault.NOT_SO, Fault.PENDING):
                raise
            refused = error
        if time.monotonic() >= deadline:
            raise refused
        time.sleep(_PAUSE_S)


def access_claim(grant: bytes, pages: Iterable[AccessPage]) -> AccessClaim:
    """Return the claim that pages of access logs make about a grant. Raises `NotFound` when they say nothing of it."""
    entries = {
        (signed.entry.proxy, signed.entry.number, signed.signature): signed
        for page in pages
        for signed in page.entries
        if signed.entry.grant_id == grant and not is_own_read(signed.entry)
    }
    if not entries:
        raise NotFound(f"the access logs given say nothing of grant {grant.hex()}")
    if len(entries) > MAX_ACCESS_ENTRIES:
        raise InvalidInput(
            f"the access logs have {len(entries)} entries about the grant, one file holds at most {MAX_ACCESS_ENTRIES}: give fewer pages"
        )
    return AccessClaim(grant, tuple(entries[place] for place in sorted(entries)))


class CheckedHistory(msgspec.Struct, frozen=True):
    """A patient's records as a node lists them, after `checked_history`."""

    records: tuple[models.Record, ...]
    """All that the node lists."""
    proved: int
    """How many of them, from the first on, are proved to be complete and as they are shown; the others only follow each other."""
    keyblock_hash: bytes
    """Hash of the keyblock that proves it."""


def checked_history(client: NodeClient, patient: bytes, trusted_hash: bytes | None = None) -> CheckedHistory:
    """Return a patient's records after checking that the node hides, reorders and changes none, nor what they were labelled.

    Labels that are younger than the keyblock are checked by their permissions and proof. `trusted_hash` is that of the newest pinned
    keyblock, from a source other than the node; without it the node's own is taken.

    Raises:
        HistoryRefused: the node does.
        NotFound: there is no keyblock that knows the patient yet.
        InvalidInput: the node's newest keyblock is another one.
    """
    changes = 0
    while True:
        try:
            return _history_at(client, patient, _at(client, trusted_hash))
        except KeyblockChanged:
            changes += 1
            if changes == _ATTEMPTS:
                raise


def _history_at(client: NodeClient, patient: bytes, state: ProvedState) -> CheckedHistory:
    (entry,) = state.fetch([PATIENTS.prefix + patient])
    if entry.value is None:
        raise NotFound(
            f"keyblock {state.keyblock_hash.hex()} knows no patient {patient.hex()}; wait for two more keyblocks: spchain epoch show"
        )
    records = tuple(client.records(patient))
    proved = check_history(PATIENTS.decode(entry.value), [_record_of(record) for record in records])
    entries = state.fetch([RECORDS.prefix + numbered_key(patient, place) for place in range(proved)])
    for shown, known in zip(records, entries, strict=False):
        _check_shown(client, shown, known.value)
    for shown in records[proved:]:
        check_record(client, shown)
    return CheckedHistory(records, proved, state.keyblock_hash)


def _check_shown(client: NodeClient, shown: models.Record, proved: bytes | None) -> None:
    """Check that a record is shown as the state has it, or with labels that came since. Raises `HistoryRefused`, `InvalidInput`."""
    record, known = _record_of(shown), None if proved is None else RECORDS.decode(proved)
    if record == known:
        return
    if known is None or record.label_count <= known.label_count or _unlabelled(record) != _unlabelled(known):
        raise HistoryRefused(
            f"record {shown.sequence} is not shown as the keyblock proves it: a label is hidden or made up, or the time was changed"
        )
    check_record(client, shown)


def _unlabelled(record: Record) -> Record:
    """Return a record without what labels change."""
    envelope = msgspec.structs.replace(record.envelope, status="final", label="", replaced_by=b"")
    return msgspec.structs.replace(record, envelope=envelope, label_count=0, may_erase=False)


def _at(client: NodeClient, trusted_hash: bytes | None) -> ProvedState:
    state = ProvedState(client)
    if trusted_hash is not None and state.keyblock_hash != trusted_hash:
        raise InvalidInput(
            f"the node's newest pinned keyblock is {state.keyblock_hash.hex()}, not {trusted_hash.hex()}: give the hash of the newest one, "
            "from a source that you trust"
        )
    return state


def _record_of(record: models.Record) -> Record:
    """Return a record of the API as it stands in the state; its types are checked. Raises `EvidenceRefused`."""
    link = PatientMicroblock(
        patient=record.patient,
        patient_keyblock=record.patient_keyblock,
        previous=record.previous,
        sequence=record.sequence,
        author=record.author,
        chameleon_hash=record.chameleon_hash,
    )
    envelope = record.envelope
    made = Record(
        record_id=record.record_id,
        microblock=link,
        generation=record.generation,
        envelope=RecordEnvelope(
            blob_id=envelope.blob_id,
            capsule_digest=envelope.capsule_digest,
            blob_bytes=envelope.blob_bytes,
            author=envelope.author,
            status=envelope.status,  # type: ignore[arg-type] # checked by the decoder below
            label=envelope.label,
            replaced_by=envelope.replaced_by,
        ),
        opening=record.opening,
        label_count=record.label_count,
        may_erase=record.may_erase,
        committed_height=record.committed_height,
        committed_timestamp_ms=record.committed_timestamp_ms,
    )
    try:
        return decode(Record, encode(made), MAX_RECORD_BYTES)
    except (InvalidInput, OverflowError) as error:
        raise EvidenceRefused(Fault.MALFORMED, f"the node's record {record.sequence}: {error}") from error
