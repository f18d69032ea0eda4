# SPDX-License-Identifier: GPL-3.0-or-later
"""The walks of claims about records: which entries they need, what these prove, and what they do not."""

from collections.abc import Mapping, Sequence

from ledger.crypto.chameleon import check_opening
from ledger.crypto.chameleon_proof import VerifyingKey, verify_proof
from ledger.crypto.keys import verify
from ledger.errors import InvalidInput
from ledger.labels import Label, labelled, permission_digest
from ledger.patients import KeyGeneration, Patient, Record, envelope_digest, patient_keyblock_hash, record_id
from ledger.state import (
    ERASURES,
    INSTITUTIONS,
    KEY_GENERATIONS,
    LABELS,
    PATIENTS,
    RECORDS,
    Institution,
    numbered_key,
)
from records.claims import (
    EvidenceRefused,
    Fault,
    Found,
    HistoryClaim,
    LabelClaim,
    Moment,
    RecordClaim,
    Scene,
    Walk,
    counted,
    entries,
    need,
    present,
    require,
    when,
)
from records.history import HistoryRefused, check_envelope, check_history

MAX_HISTORY_RECORDS = 4096
"""Records of one file: 6 MB with their proofs at a million entries. Whoever has more of them shows single records."""
MAX_LABELS = 64
"""Labels of one record in one file; each needed a permission of its own."""
MAX_GENERATIONS = 256
"""Key generations of a patient in one file: a change of keys in every month of twenty years."""

_CONTENT = "what the record says: only its patient, and whom the patient lets read it, can decrypt it"
_CIPHERTEXT = "that some node still keeps the ciphertext"


# ------------------------------------------------------------------ records


def walk_record(_scene: Scene, claim: RecordClaim, moment: Moment) -> Walk[Found]:
    """Check that a record stands in its patient's chain."""
    patient = yield from _patient(claim.patient)
    found = yield from present(RECORDS, numbered_key(claim.patient, claim.sequence), _record_name(claim))
    generation, author = yield from _check_record(claim.patient, claim.sequence, patient, found)
    if not found.label_count:
        _check_original(found)
    labels = (
        ("the envelope is as its author committed it: the chameleon hash opens to it, and nobody has labelled it",)
        if not found.label_count
        else (
            f"the record was labelled, {counted(found.label_count, 'time')}; its status is now {found.envelope.status}",
        )
    )
    return Found(
        proven=(*_record_words(found, generation, author), *labels),
        not_proven=(
            _CONTENT,
            _CIPHERTEXT,
            *(("who labelled it and why: export a label for that",) if found.label_count else ()),
            *_since(moment),
        ),
        facts={"record": found, "keys": generation, "author": author},
    )


def walk_history(_scene: Scene, claim: HistoryClaim, moment: Moment) -> Walk[Found]:
    """Check that records are all that a patient has, in order."""
    patient = yield from _patient(claim.patient)
    count = patient.record_count
    if count > MAX_HISTORY_RECORDS:
        detail = f"the patient has {count} records, one file holds at most {MAX_HISTORY_RECORDS}"
        raise EvidenceRefused(Fault.NOT_SO, f"{detail}; export single records")
    keys = [numbered_key(claim.patient, sequence) for sequence in range(count)]
    rows = yield from entries(RECORDS, keys)
    records = [need(row, f"record {place} of {count}") for place, row in enumerate(rows)]
    try:
        check_history(patient, records)
    except HistoryRefused as error:
        raise EvidenceRefused(Fault.CONTRADICTION, str(error)) from error
    authors = sorted({row.microblock.author for row in records})
    institutions = yield from entries(INSTITUTIONS, authors)
    names = {
        author: need(row, f"institution {author.hex()}").name for author, row in zip(authors, institutions, strict=True)
    }
    lines = tuple(
        f"record {row.microblock.sequence}: {row.record_id.hex()}, committed {when(row.committed_timestamp_ms)} by "
        f"{names[row.microblock.author]!r}, {row.envelope.status}"
        + (f", labelled: {row.envelope.label!r}" if row.label_count else "")
        for row in records
    )
    return Found(
        proven=(
            (
                f"patient {claim.patient.hex()} has {counted(count, 'record')} and no other: the list is complete and in the order in "
                "which they were committed"
            ),
            *lines,
        ),
        not_proven=(_CONTENT.replace("the record says", "the records say"), *_since(moment)),
        facts={"patient": patient, "records": tuple(records)},
    )


def walk_label(scene: Scene, claim: LabelClaim, moment: Moment) -> Walk[Found]:
    """Check the whole history of a record's labels."""
    patient = yield from _patient(claim.patient)
    found = yield from present(RECORDS, numbered_key(claim.patient, claim.sequence), _record_name(claim))
    generation, author = yield from _check_record(claim.patient, claim.sequence, patient, found)
    if not 0 < found.label_count <= MAX_LABELS:
        detail = f"record {claim.sequence} has {counted(found.label_count, 'label')}, one file shows 1 to {MAX_LABELS}"
        raise EvidenceRefused(Fault.NOT_SO, detail)
    keys = [numbered_key(claim.patient, claim.sequence, number) for number in range(found.label_count)]
    rows = yield from entries(LABELS, keys)
    labels = [need(row, f"label {number} of record {claim.sequence}") for number, row in enumerate(rows)]
    generations = yield from _generations(patient)
    institutions = sorted({found.microblock.author, *(row.institution for row in labels)})
    registered = yield from entries(INSTITUTIONS, institutions)
    names = {
        address: need(row, f"institution {address.hex()}").name
        for address, row in zip(institutions, registered, strict=True)
    }
    erasure_keys = [numbered_key(claim.patient, claim.sequence) + address for address in institutions]
    erasures = yield from entries(ERASURES, erasure_keys if found.may_erase else [])
    _check_labels(scene, found, generation, labels)
    words: list[str] = []
    for number, row in enumerate(labels):
        words += _label_words(number, row, generations, names)
    for address, erasure in zip(institutions, erasures, strict=False):
        if erasure is None:
            words.append(f"{names[address]!r} has not confirmed that it erased the ciphertext")
        else:
            words.append(
                f"{names[address]!r} has confirmed, in microblock {erasure.height}, that it erased the ciphertext"
            )
    return Found(
        proven=(*_record_words(found, generation, author), *words),
        not_proven=(
            _CONTENT,
            "that a label is medically right",
            "that a delegate who signed a permission had the power to: the network checked it when the label was committed",
            *(("that no copy of an erased ciphertext is left anywhere",) if found.may_erase else ()),
            *_since(moment),
        ),
        facts={"record": found, "labels": tuple(labels)},
    )


def _patient(address: bytes) -> Walk[Patient]:
    patient = yield from present(PATIENTS, address, f"patient {address.hex()}")
    require(patient.keyblock.patient == address, "the patient's entry is of another patient")
    return patient


def _record_name(claim: RecordClaim | LabelClaim) -> str:
    return f"record {claim.sequence} of patient {claim.patient.hex()}"


def _check_record(
    address: bytes, sequence: int, patient: Patient, found: Record
) -> Walk[tuple[KeyGeneration, Institution]]:
    """Check what binds a record to its patient, keys and author."""
    link = found.microblock
    require((link.patient, link.sequence) == (address, sequence), "the record's entry is of another record")
    require(sequence < patient.record_count, "the record lies behind the patient's last one")
    require(record_id(link) == found.record_id, "the record's identifier is not the hash of its link")
    generation = yield from present(
        KEY_GENERATIONS, numbered_key(address, found.generation), f"key generation {found.generation} of the patient"
    )
    fits = patient_keyblock_hash(generation.keyblock) == generation.keyblock_hash == link.patient_keyblock
    require(fits, f"the record does not belong to the patient's key generation {found.generation}")
    author = yield from present(INSTITUTIONS, link.author, f"institution {link.author.hex()}")
    return generation, author


def _check_original(found: Record) -> None:
    try:
        check_envelope(found)
    except HistoryRefused as error:
        raise EvidenceRefused(Fault.CONTRADICTION, str(error)) from error


def _check_labels(scene: Scene, found: Record, generation: KeyGeneration, labels: Sequence[Label]) -> None:
    first = labels[0].previous
    opens = check_opening(found.microblock.chameleon_hash, envelope_digest(first), found.opening)
    require(opens, "the envelope before the first label is not the one that was committed")
    key = _verifying_key(scene)
    previous = first
    for number, row in enumerate(labels):
        permission = row.permission
        named = (permission.patient, permission.record, permission.sequence, permission.number)
        expected = (generation.keyblock.patient, found.record_id, found.microblock.sequence, number)
        require(named == expected, f"the permission of label {number} is for something else")
        require(
            row.institution == permission.institution, f"label {number} is of another institution than was permitted"
        )
        require(
            row.committed_height <= permission.expiry_height, f"label {number} came after its permission had expired"
        )
        statement = (generation.keyblock.chameleon_key, found.microblock.chameleon_hash, envelope_digest(row.envelope))
        if not verify_proof(key, *statement, row.proof):
            detail = f"the proof of label {number} does not show that the chameleon hash opens to the labelled envelope"
            raise EvidenceRefused(Fault.WRONG_PROOF, detail)
        fits = row.previous == previous and row.envelope == labelled(previous, permission)
        require(fits, f"label {number} changed something else than was permitted")
        if not verify(row.signer, permission_digest(scene.chain.id, permission), row.signature):
            raise EvidenceRefused(
                Fault.BAD_SIGNATURE, f"the permission of label {number} is not signed by {row.signer.hex()}"
            )
        previous = row.envelope
    require(previous == found.envelope, "the record's envelope is not that of its newest label")


def _verifying_key(scene: Scene) -> VerifyingKey:
    try:
        return VerifyingKey.decode(scene.chain.verifying_key)
    except InvalidInput as error:
        raise EvidenceRefused(
            Fault.MALFORMED, f"the genesis has no key that labels can be checked with: {error}"
        ) from error


def _label_words(
    number: int, row: Label, generations: Mapping[bytes, int], names: Mapping[bytes, str]
) -> tuple[str, ...]:
    permission = row.permission
    held = generations.get(row.signer)
    signer = "a delegate of the patient" if held is None else f"the patient (key generation {held})"
    replaced = f", replaced by record {permission.replacement_sequence}" if permission.replaced_by else ""
    return (
        (
            f"label {number}: {names[row.institution]!r} labelled the record {row.envelope.status} ({permission.label!r}{replaced}), "
            f"committed in microblock {row.committed_height} at {when(row.committed_timestamp_ms)}"
        ),
        f"label {number}: {signer} permitted exactly this by a signature that is in this file and was checked; so was the "
        "proof that the record's hash, which never changed, opens to the label"
        + ("; nodes may erase the ciphertext" if permission.may_erase else ""),
    )


def _generations(patient: Patient) -> Walk[dict[bytes, int]]:
    """Return which key was the patient's in which generation."""
    address, newest = patient.keyblock.patient, patient.keyblock.generation
    numbers = range(max(0, newest + 1 - MAX_GENERATIONS), newest + 1)
    rows = yield from entries(KEY_GENERATIONS, [numbered_key(address, number) for number in numbers])
    return {
        need(row, f"key generation {number} of the patient").keyblock.signing_key: number
        for number, row in zip(numbers, rows, strict=True)
    }


def _record_words(found: Record, generation: KeyGeneration, author: Institution) -> tuple[str, ...]:
    link = found.microblock
    return (
        f"record {link.sequence} of patient {link.patient.hex()} is {found.record_id.hex()}",
        (
            f"{author.name!r} ({link.author.hex()}) wrote it; it was committed in microblock {found.committed_height} at "
            f"{when(found.committed_timestamp_ms)}"
        ),
        (
            f"its ciphertext is blob {found.envelope.blob_id.hex()} of {found.envelope.blob_bytes} bytes, encrypted to key generation "
            f"{found.generation} of the patient ({generation.keyblock.reencryption_key.hex()})"
        ),
    )


def _since(moment: Moment) -> tuple[str, ...]:
    return (f"anything that was committed after microblock {moment.height}",)
