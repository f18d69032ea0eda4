# SPDX-License-Identifier: GPL-3.0-or-later
"""From the store to the API's answers. Everything is bounded by a page or by one microblock."""

import re
from collections.abc import Iterator
from http import HTTPStatus

import msgspec

from ledger import queries
from ledger.blocks import MAX_MICROBLOCK_BYTES, MicroblockHeader, SignedMicroblock, keyblock_hash
from ledger.codec import decoder, encode
from ledger.crypto.keys import ADDRESS_BYTES, address_of
from ledger.genesis import Genesis, genesis_block
from ledger.patients import Record as RecordState
from ledger.state import ACCREDITATIONS, AUTHORISATIONS, INSTITUTIONS, PATIENTS, RECORDS, State, numbered_key, scan
from ledger.state import Institution as InstitutionState
from ledger.store import Store
from ledger.transactions import MAX_CHALLENGE_BYTES, SignedTransaction, decode_batch, transaction_id
from node.api import models
from node.api.bodies import parse_hex
from node.api.errors import Problem
from node.readable import readable

_DIGEST_BYTES = 32
_HEIGHT = re.compile(r"[0-9]{1,19}")
_decode_block = decoder(SignedMicroblock, MAX_MICROBLOCK_BYTES, own=True)
_decode_transaction = decoder(SignedTransaction, MAX_CHALLENGE_BYTES, own=True)
_WORD = re.compile(r"(?<!^)(?=[A-Z])")


def not_found(what: str, remedy: str) -> Problem:
    """Return the problem of something that is not in the committed state."""
    return Problem(HTTPStatus.NOT_FOUND, "not_found", what, remedy)


def height_of(store: Store, reference: str) -> int:
    """Return the height of a block named by `latest`, its height or its hash; raises `Problem`."""
    head = store.head()
    if reference == "latest":
        return head.height
    if _HEIGHT.fullmatch(reference):
        height = int(reference)
        if height > head.height:
            raise not_found(f"height {height} is not committed here; the newest is {head.height}", "wait, or sync")
        return height
    block_hash = parse_hex(reference, _DIGEST_BYTES, "block")
    if block_hash == store.block_hash(0):
        return 0
    raw = store.microblock(block_hash)
    if raw is None:
        raise not_found(f"no committed block has the hash {reference}", "check the hash, or ask another node")
    return _decode_block(raw).microblock.header.height


def block_at(store: Store, height: int) -> models.Block:
    """Return a committed microblock."""
    block_hash, state_digest = store.block_hash(height), store.state_digest(height)
    assert block_hash is not None, f"height {height} is committed and has a hash"
    assert state_digest is not None, f"height {height} is committed and has a state digest"
    signature, certificate = b"", b""
    raw = store.microblock(block_hash)
    if raw is None:
        assert height == 0, f"the store keeps the microblock at height {height}"
        microblock = genesis_block(store.genesis, state_digest)
    else:
        signed = _decode_block(raw)
        microblock, signature = signed.microblock, signed.signature
        certificate = store.certificate(block_hash) or b""
    header = msgspec.structs.asdict(microblock.header)
    executed_state_digest = header.pop("state_digest")
    del header["batch_count"]
    signed_keyblock = microblock.keyblock
    header["pinned"] = b"" if signed_keyblock is None else keyblock_hash(signed_keyblock.keyblock)
    return models.Block(
        **header,
        block_hash=block_hash,
        batches=microblock.batches,
        executed_state_digest=executed_state_digest,
        state_digest=state_digest,
        signature=signature,
        certificate=certificate,
    )


def header_at(store: Store, height: int) -> tuple[bytes, MicroblockHeader, tuple[bytes, ...]]:
    """Return hash, header and batch digests of a committed microblock other than the genesis."""
    block_hash = store.block_hash(height)
    raw = store.microblock(block_hash) if block_hash is not None else None
    assert block_hash is not None, f"height {height} is committed and has a hash"
    assert raw is not None, f"the store keeps the microblock at height {height}"
    microblock = _decode_block(raw).microblock
    return block_hash, microblock.header, microblock.batches


def batches_at(store: Store, height: int) -> Iterator[tuple[int, tuple[bytes, ...]]]:
    """Yield each batch of a committed microblock with the position of its first transaction; about 1 ms a step."""
    position = 0
    for digest in header_at(store, height)[2] if height else ():
        raw = store.batch(digest)
        if raw is None:
            raise Problem(
                HTTPStatus.NOT_FOUND,
                "not_found",
                f"batch {digest.hex()} of height {height} is not kept here",
                "ask another node",
            )
        batch = decode_batch(raw)
        yield position, batch
        position += len(batch)


def listed(store: Store, height: int, position: int, raw: bytes) -> models.BlockTransaction:
    """Return a transaction of a microblock with what became of it there."""
    identifier = transaction_id(raw)
    receipt = store.receipt(identifier)
    # The receipt belongs to the place where the transaction took effect, or stood last.
    here = receipt is not None and (receipt.height, receipt.position) == (height, position)
    reason = receipt.reason if receipt is not None and here else "superseded"
    return models.BlockTransaction(id=identifier, position=position, reason=reason)


def transaction_at(store: Store, identifier: bytes) -> models.Transaction:
    """Return a committed transaction with its content. Raises `NotFound`."""
    found = queries.find_transaction(store, identifier)
    content = _decode_transaction(found.raw).transaction
    return models.Transaction(
        id=identifier,
        block_hash=found.block_hash,
        receipt=models.Receipt.model_validate(found.receipt),
        kind=_WORD.sub("_", type(content.body).__name__).lower(),
        sender=address_of(content.sender),
        nonce=content.nonce,
        fee_microcredit=content.fee_microcredit,
        expiry_height=content.expiry_height,
        body=readable(content.body),
        raw=found.raw,
    )


def account_at(store: Store, address: bytes, next_nonce: int) -> models.Account:
    """Return an account."""
    state = State(store)
    account = state.account(address)
    return models.Account(
        address=address,
        nonce=account.nonce,
        next_nonce=next_nonce,
        balance_microcredit=account.balance_microcredit,
        is_accredited=state.get(ACCREDITATIONS, address) is not None,
        is_institution=state.get(INSTITUTIONS, address) is not None,
        is_patient=state.get(PATIENTS, address) is not None,
    )


def institution_at(store: Store, address: bytes) -> models.Institution:
    """Return a registered institution. Raises `NotFound`."""
    return _institution(address, queries.institution(store, address))


def institutions_from(store: Store, start: bytes, limit: int) -> models.Institutions:
    """Return up to `limit` institutions from an address on."""
    found = [_institution(address, entry) for address, entry in scan(store, INSTITUTIONS, b"", start, limit + 1)]
    following = found[limit].address if len(found) > limit else None
    return models.Institutions(institutions=tuple(found[:limit]), next_start=following)


def patient_at(store: Store, address: bytes) -> models.Patient:
    """Return a registered patient. Raises `NotFound`."""
    entry = queries.patient(store, address)
    authors = [
        models.Author(institution=key[ADDRESS_BYTES:], allowed=item.allowed, changed_height=item.changed_height)
        for key, item in scan(store, AUTHORISATIONS, address, address, models.MAX_PAGE)
    ]
    return models.Patient(
        address=address,
        generation=entry.keyblock.generation,
        signing_key=entry.keyblock.signing_key,
        reencryption_key=entry.keyblock.reencryption_key,
        chameleon_key=entry.keyblock.chameleon_key,
        institution=entry.keyblock.institution,
        keyblock_hash=entry.keyblock_hash,
        registered_height=entry.registered_height,
        record_count=entry.record_count,
        last_record=entry.last_record,
        record_peaks=entry.record_peaks,
        authors=tuple(authors),
    )


def records_from(store: Store, patient: bytes, start: int, limit: int) -> models.Records:
    """Return up to `limit` records of a patient from a sequence number on. Raises `NotFound`: an unknown patient."""
    queries.patient(store, patient)
    entries = [entry for _, entry in scan(store, RECORDS, patient, numbered_key(patient, start), limit + 1)]
    following = entries[limit].microblock.sequence if len(entries) > limit else None
    return models.Records(records=tuple(_record(entry) for entry in entries[:limit]), next_start=following)


def record_at(store: Store, patient: bytes, sequence: int) -> models.Record:
    """Return one record; raises `Problem`."""
    entry = State(store).get(RECORDS, numbered_key(patient, sequence))
    if entry is None:
        raise not_found(f"patient {patient.hex()} has no record {sequence}", "list the patient's records")
    return _record(entry)


def state_at(store: Store, height: int | None) -> models.StateAt:
    """Return the digests of the state at a height; of the newest one with the root. Raises `Problem`."""
    head = store.head()
    if height is None or height == head.height:
        # The store folds what changed since the last call, at most about 0.3 s. It is called from one thread only, so not
        # from a worker; each change is folded once, however often somebody asks.
        root = store.state_root()
        return models.StateAt(
            height=head.height, block_hash=head.block_hash, state_digest=head.state_digest, state_root=root
        )
    block_hash, digest = store.block_hash(height), store.state_digest(height)
    if block_hash is None or digest is None:
        raise not_found(
            f"height {height} is not committed here; the newest is {head.height}", "wait, or ask another node"
        )
    return models.StateAt(height=height, block_hash=block_hash, state_digest=digest, state_root=None)


def genesis_info(chain_id: bytes, genesis: Genesis) -> models.GenesisInfo:
    """Return the genesis, readable and as bytes."""
    return models.GenesisInfo(chain_id=chain_id, genesis=readable(genesis), raw=encode(genesis))


def _institution(address: bytes, entry: InstitutionState) -> models.Institution:
    return models.Institution(address=address, **msgspec.structs.asdict(entry))


def _record(entry: RecordState) -> models.Record:
    return models.Record(
        record_id=entry.record_id,
        **msgspec.structs.asdict(entry.microblock),
        generation=entry.generation,
        envelope=models.Envelope.model_validate(entry.envelope),
        opening=entry.opening,
        label_count=entry.label_count,
        may_erase=entry.may_erase,
        committed_height=entry.committed_height,
        committed_timestamp_ms=entry.committed_timestamp_ms,
    )
