# SPDX-License-Identifier: GPL-3.0-or-later
"""A chain with everything that evidence can be about, and the keyblocks to prove it with. All signatures and puzzles are real."""

from collections.abc import Sequence

import msgspec

from ledger import testing
from ledger.blocks import SignedKeyblock, keyblock_hash
from ledger.bodies import (
    ApproveEmergency,
    AuthoriseAuthor,
    CommitRecord,
    ConfirmDeletion,
    ConfirmErasure,
    GrantAccess,
    LabelRecord,
    OpenEmergency,
    RegisterInstitution,
    RevokeAccess,
)
from ledger.codec import encode
from ledger.crypto.development_key import DEVELOPMENT_VERIFYING_KEY
from ledger.crypto.hashing import ZERO_DIGEST, Tag, tagged_hash
from ledger.genesis import chain_id
from ledger.labels import LabelPermission, labelled, permission_digest
from ledger.memory_store import MemoryStore
from ledger.patients import Record, envelope_digest
from ledger.sharing import GrantTerms, grant_id
from ledger.state import RECORDS, State, numbered_key
from ledger.store import Snapshot, Store
from records.access_entries import AccessEntry, SignedEntry, entry_hash, sign_entry
from records.chameleon_keys import DEVELOPMENT_PROVING_KEY
from records.chameleon_prover import Prover
from records.claims import Claim, ContractReader
from records.evidence import Findings, StateEntry, gather
from records.requests import RefusalReason
from tests.consensus.chains import PARAMETERS, ChainMaker

HOSPITALS = (0, 1, 2, 3)
NAMES = ("Graz", "Wien", "Linz", "Salzburg")
PATIENT, OTHER = testing.key(10), testing.key(11)
RECORDS_OF_PATIENT = 6
GENESIS = testing.genesis(parameters=msgspec.structs.replace(PARAMETERS, maximum_expiry_microblocks=100_000))
CHAIN = chain_id(GENESIS)
HOUR_MS = 3_600_000
PROVER = Prover(DEVELOPMENT_PROVING_KEY, DEVELOPMENT_VERIFYING_KEY)


class Network:
    """A chain in which two patients have records, grants and labels."""

    def __init__(self, store: Store | None = None) -> None:
        self.store = MemoryStore(GENESIS) if store is None else store
        self.maker = ChainMaker(self.store)
        self.keyblocks: list[SignedKeyblock] = []

    def pin(self) -> SignedKeyblock:
        """Pin the next keyblock; what was committed before is proved by the one after it."""
        signed = self.maker.mine(len(self.keyblocks) % 4)
        self.maker.pin(len(self.keyblocks) % 4)
        self.keyblocks.append(signed)
        return signed

    def settle(self) -> SignedKeyblock:
        """Pin twice: the keyblock that is returned proves what is committed now."""
        self.pin()
        return self.pin()

    def register(self) -> None:
        """Register four hospitals and two patients, and let the first hospital write."""
        maker = self.maker
        maker.extend(
            *(
                maker.signed(number, RegisterInstitution(NAMES[number], "AT", testing.encryption_key(number)))
                for number in HOSPITALS
            )
        )
        for place, patient in enumerate((PATIENT, OTHER)):
            hospital = testing.key(place)
            nonce = State(self.store).account(hospital.address).nonce
            maker.extend(testing.register_patient(CHAIN, hospital, patient, nonce))
        maker.extend(maker.signed(10, AuthoriseAuthor(PATIENT.address, testing.key(1).address, allowed=True)))

    def write(self, count: int = RECORDS_OF_PATIENT) -> tuple[CommitRecord, ...]:
        """Commit records of the patient, all by the first hospital."""
        keyblock = testing.patient_keyblock(PATIENT, testing.key(0).address)
        bodies = testing.record_chain(testing.key(0).address, keyblock, count)
        have = State(self.store).get(RECORDS, numbered_key(PATIENT.address, 0))
        assert have is None, "records are written once"
        self.maker.extend(*(self.maker.signed(0, body) for body in bodies))
        return bodies

    def terms(self, **changes: object) -> GrantTerms:
        """Return terms of a grant of the patient to the second hospital."""
        now = self.store.head().timestamp_ms
        terms = GrantTerms(
            patient=PATIENT.address,
            generation=0,
            grantee=testing.key(1).address,
            receiving_key=testing.encryption_key(1),
            all_records=False,
            records=(0, 2),
            purposes=("TREAT",),
            from_ms=now,
            until_ms=now + HOUR_MS,
            threshold=2,
            proxies=(testing.key(2).address, testing.key(3).address),
            fragment_digests=tuple(tagged_hash(Tag.KEY_FRAGMENT, bytes([number])) for number in range(2)),
            emergency_approvals=0,
        )
        return msgspec.structs.replace(terms, **changes)

    def grant(self, **changes: object) -> bytes:
        """Commit a grant and return its identifier."""
        terms = self.terms(**changes)
        done = self.maker.extend(self.maker.signed(10, GrantAccess(terms)))
        assert not done.execution.receipts[0][1].reason, done.execution.receipts
        return grant_id(terms)

    def revoke(self, identifier: bytes, confirming: Sequence[int] = ()) -> None:
        """Commit a revocation and confirmations of hospitals."""
        self.maker.extend(self.maker.signed(10, RevokeAccess(identifier)))
        for hospital in confirming:
            self.maker.extend(self.maker.signed(hospital, ConfirmDeletion(identifier)))

    def emergency(self, identifier: bytes, approving: Sequence[int]) -> None:
        """Commit the second hospital's call for a sleeping grant, and approvals."""
        until_ms = self.store.head().timestamp_ms + HOUR_MS // 2
        done = self.maker.extend(self.maker.signed(1, OpenEmergency(identifier, "stroke", until_ms)))
        assert not done.execution.receipts[0][1].reason, done.execution.receipts
        for hospital in approving:
            self.maker.extend(self.maker.signed(hospital, ApproveEmergency(PATIENT.address, 0)))

    def access(
        self, identifier: bytes, hospital: int = 2, reasons: Sequence[RefusalReason | None] = (None,), first: int = 0
    ) -> tuple[SignedEntry, ...]:
        """Return what a proxy has written down of requests of the second hospital, one for each reason."""
        entries: list[SignedEntry] = []
        last = ZERO_DIGEST
        for number, reason in enumerate(reasons, first):
            entry = AccessEntry(
                proxy=testing.key(hospital).address,
                number=number,
                previous=last,
                patient=PATIENT.address,
                patient_number=number,
                patient_previous=last,
                grant_id=identifier,
                records=(0, 2),
                requester=testing.key(1).public_key,
                purpose="TREAT",
                emergency=None,
                reason=reason,
                request_digest=tagged_hash(Tag.REENCRYPTION_REQUEST, number.to_bytes(8, "big")),
                fragments_digest=ZERO_DIGEST,
                head_height=self.store.head().height,
                timestamp_ms=self.store.head().timestamp_ms + number,
            )
            last = entry_hash(entry)
            entries.append(sign_entry(CHAIN, testing.key(hospital), entry))
        return tuple(entries)

    def label(self, sequence: int, status: str = "entered-in-error", **changes: object) -> LabelPermission:
        """Commit a label of a record by the first hospital."""
        record = self.record(sequence)
        permission = LabelPermission(
            patient=PATIENT.address,
            record=record.record_id,
            sequence=sequence,
            number=record.label_count,
            institution=testing.key(0).address,
            status=status,  # type: ignore[arg-type] # one of two, from a test
            label="wrong patient",
            replaced_by=b"",
            replacement_sequence=0,
            may_erase=True,
            expiry_height=self.store.head().height + 40,
        )
        permission = msgspec.structs.replace(permission, **changes)
        trapdoor, public_key = testing.chameleon_trapdoor(0)
        envelope, chameleon_hash = labelled(record.envelope, permission), record.microblock.chameleon_hash
        body = LabelRecord(
            permission=permission,
            signer=PATIENT.public_key,
            signature=PATIENT.sign(permission_digest(CHAIN, permission)),
            chameleon_key=public_key,
            chameleon_hash=chameleon_hash,
            envelope=envelope,
            proof=PROVER.adapt(trapdoor, public_key, chameleon_hash, envelope_digest(envelope)),
        )
        done = self.maker.extend(self.maker.signed(0, body))
        assert not done.execution.receipts[0][1].reason, done.execution.receipts
        return permission

    def confirm_erasure(self, sequence: int) -> None:
        """Commit the first hospital's confirmation that it erased a ciphertext."""
        self.maker.extend(self.maker.signed(0, ConfirmErasure(PATIENT.address, sequence)))

    def record(self, sequence: int) -> Record:
        """Return a record of the patient as it is now."""
        found = State(self.store).get(RECORDS, numbered_key(PATIENT.address, sequence))
        assert found is not None
        return found

    # ------------------------------------------------------------------ evidence

    def snapshot(self, signed: SignedKeyblock) -> Snapshot:
        """Return the state that a keyblock stands for."""
        return self.store.snapshot_at(signed.keyblock.state_root)

    def gather(
        self, signed: SignedKeyblock, claim: Claim, reader: ContractReader | None = None
    ) -> tuple[bytes, Findings]:
        """Make evidence."""
        return gather(encode(GENESIS), signed, claim, lambda keys: entries_of(self.snapshot(signed), keys), reader)


def entries_of(snapshot: Snapshot, keys: Sequence[bytes]) -> list[StateEntry]:
    """Return proved entries."""
    return [StateEntry(key, snapshot.get_state(key), snapshot.prove(key)) for key in keys]


def hash_of(signed: SignedKeyblock) -> bytes:
    """Return what a verifier is given."""
    return keyblock_hash(signed.keyblock)
