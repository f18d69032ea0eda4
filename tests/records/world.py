# SPDX-License-Identifier: GPL-3.0-or-later
"""A small world for tests of sharing: a chain in memory with hospitals, a patient and records, and a proxy in each hospital.

Everything is real: transactions go through the transition, records are encrypted, fragments are sealed, stores are on disk.
"""

import itertools
from collections.abc import Sequence
from pathlib import Path

from ledger import testing
from ledger.bodies import Body, CommitRecord, GrantAccess, RegisterInstitution, RegisterPatient, RevokeAccess
from ledger.crypto import chameleon
from ledger.crypto.hashing import Tag, tagged_hash
from ledger.crypto.keys import PrivateKey
from ledger.crypto.reencryption import ReencryptionKey
from ledger.genesis import chain_id
from ledger.memory_store import MemoryStore
from ledger.patients import PatientMicroblock, RecordEnvelope, envelope_digest, patient_keyblock_signing_digest
from ledger.sharing import Grant
from ledger.state import GRANTS, PATIENTS, State
from ledger.transactions import transaction_id
from records.access_log import AccessLog
from records.envelope import SealedRecord, parse_blob, seal
from records.fragment_store import FragmentStore
from records.grants import GrantChoice, PreparedGrant, prepare_grant
from records.proxy import ProxyView
from records.proxy_desk import ProxyDesk
from records.requests import SignedRequest, sign_request

HOSPITALS = 6
PATIENT, GRANTEE = 20, 5
"""Numbers of the kit's keys: the patient, and the hospital that will read."""
HOUR_MS = 3_600_000


def encryption(number: int) -> ReencryptionKey:
    """Return the Umbral key of a number of the kit."""
    return ReencryptionKey(testing.encryption_secret(number))


class _Desks(dict[bytes, ProxyDesk]):
    """The desks by the proxy's address, each opened and swept when it is first used."""

    def __init__(self, world: "World") -> None:
        super().__init__()
        self._world = world

    def __missing__(self, proxy: bytes) -> ProxyDesk:
        desk = self[proxy] = self._world.open_desk(hospital(proxy))
        desk.sweep(self._world.view())
        return desk


def hospital(proxy: bytes) -> int:
    """Return the number of the kit's key with an address."""
    return next(number for number in range(HOSPITALS) if testing.key(number).address == proxy)


class World:
    """The chain, and a proxy desk per hospital under `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = MemoryStore(testing.genesis(n_members=HOSPITALS, n_funded=40))
        self.chain = chain_id(self.store.genesis)
        self.patient = testing.key(PATIENT)
        self.grantee = testing.key(GRANTEE)
        self.blobs: list[SealedRecord] = []
        self.fragments: dict[bytes, FragmentStore] = {}
        self.logs: dict[bytes, AccessLog] = {}
        self._nonces: dict[bytes, int] = {}
        self._requests = itertools.count()
        for number in range(HOSPITALS):
            registration = RegisterInstitution(f"Hospital {number}", "AT", testing.encryption_key(number))
            self.submit(testing.key(number), registration)
        self.register(PATIENT)
        self.desks = _Desks(self)

    def register(self, number: int) -> None:
        """Register a patient of the kit with the first hospital, with keys of the same number."""
        registrar, patient = testing.key(0), testing.key(number)
        keyblock = testing.patient_keyblock(patient, registrar.address, number)
        consent = patient.sign(patient_keyblock_signing_digest(self.chain, keyblock))
        self.submit(registrar, RegisterPatient(keyblock, consent, 10**6))

    def open_desk(self, number: int) -> ProxyDesk:
        """Return the proxy of a hospital, over its files."""
        folder = self.folder / str(number)
        folder.mkdir(exist_ok=True)
        key = testing.key(number)
        self.fragments[key.address] = FragmentStore(
            folder / "fragments", chain_id=self.chain, key=tagged_hash(Tag.KEY_FRAGMENT, key.secret)
        )
        self.logs[key.address] = AccessLog(folder / "access-log", chain_id=self.chain, key=key)
        return ProxyDesk(
            chain_id=self.chain,
            key=key,
            encryption=encryption(number),
            fragments=self.fragments[key.address],
            log=self.logs[key.address],
            clock_ms=self.store.head().timestamp_ms,
        )

    def close_desk(self, proxy: bytes) -> None:
        """Close the files of a proxy, as its process would on leaving."""
        self.fragments[proxy].close()
        self.logs[proxy].close()

    def close(self) -> None:
        """Close all files."""
        for proxy in self.desks:
            self.close_desk(proxy)

    def submit(self, sender: PrivateKey, body: Body, reason: str = "") -> None:
        """Commit one transaction as a block, and check what became of it."""
        nonce = self._nonces.get(sender.address, 0)
        raw = testing.signed(self.chain, sender, body, nonce, expiry_height=self.store.head().height + 50)
        testing.commit(self.store, [raw])
        receipt = self.store.receipt(transaction_id(raw))
        assert receipt is not None
        assert receipt.reason == reason
        if not reason:
            self._nonces[sender.address] = nonce + 1

    def pass_blocks(self, count: int) -> None:
        """Commit empty blocks, a second each."""
        for _ in range(count):
            testing.commit(self.store)

    def add_record(self, bundle: bytes, patient: int = PATIENT) -> int:
        """Seal a bundle and commit it as the next record; return its sequence number."""
        state = self.state().get(PATIENTS, testing.key(patient).address)
        assert state is not None
        sealed = seal(bundle, state.keyblock.reencryption_key)
        author = testing.key(0)
        envelope = RecordEnvelope(
            sealed.blob_id, sealed.capsule_digest, sealed.blob_bytes, author.address, "final", "", b""
        )
        opening = chameleon.draw_opening(sealed.blob_id)
        link = PatientMicroblock(
            patient=state.keyblock.patient,
            patient_keyblock=state.keyblock_hash,
            previous=state.last_record,
            sequence=state.record_count,
            author=author.address,
            chameleon_hash=chameleon.hash_message(envelope_digest(envelope), opening),
        )
        self.submit(author, CommitRecord(link, envelope, opening))
        if patient == PATIENT:
            self.blobs.append(sealed)
        return link.sequence

    def choice(self, **changes: object) -> GrantChoice:
        """Return the usual choice: the grantee may read all records for treatment, by 2 of 3 proxies, for an hour."""
        usual: dict[str, object] = {
            "patient": self.patient.address,
            "generation": 0,
            "grantee": self.grantee.address,
            "receiving_key": testing.encryption_key(GRANTEE),
            "records": None,
            "purposes": ("TREAT",),
            "from_ms": self.now_ms(),
            "until_ms": self.now_ms() + HOUR_MS,
            "threshold": 2,
            "proxies": tuple(testing.key(number).address for number in (1, 2, 3)),
        }
        return GrantChoice(**(usual | changes))  # type: ignore[arg-type]  # tests name fields freely

    def prepare(self, **changes: object) -> PreparedGrant:
        """Return a prepared grant of the patient that is not on the chain."""
        return prepare_grant(encryption(PATIENT), self.patient, self.choice(**changes))

    def grant(self, **changes: object) -> PreparedGrant:
        """Commit a grant and hand every proxy its fragment."""
        prepared = self.prepare(**changes)
        self.submit(self.patient, GrantAccess(prepared.terms))
        self.deliver(prepared)
        return prepared

    def deliver(self, prepared: PreparedGrant) -> list[bytes]:
        """Hand every proxy its fragment; return the receipts."""
        receipts = []
        for proxy in prepared.terms.proxies:
            sealed = prepared.seal(proxy, testing.encryption_key(hospital(proxy)))
            receipts.append(self.desks[proxy].take_fragment(sealed, self.view()))
        return receipts

    def revoke(self, prepared: PreparedGrant) -> None:
        """Commit the revocation of a grant."""
        self.submit(self.patient, RevokeAccess(prepared.grant_id))

    def restart_desk(self, proxy: bytes) -> ProxyDesk:
        """Return the proxy over the same files, as after a restart; it has not swept yet."""
        self.close_desk(proxy)
        self.desks[proxy] = self.open_desk(hospital(proxy))
        return self.desks[proxy]

    def sweep(self) -> None:
        """Let every proxy sweep."""
        for desk in self.desks.values():
            desk.sweep(self.view())

    def state(self) -> State:
        """Return the committed state."""
        return State(self.store)

    def granted(self, prepared: PreparedGrant) -> Grant:
        """Return a grant as it is on the chain."""
        grant = self.state().get(GRANTS, prepared.grant_id)
        assert grant is not None
        return grant

    def now_ms(self) -> int:
        """Return the time of the head."""
        return self.store.head().timestamp_ms

    def view(self, *, clock_ms: int | None = None, is_catching_up: bool = False) -> ProxyView:
        """Return what a proxy knows now; its clock shows the head's time."""
        head = self.store.head()
        clock_ms = head.timestamp_ms if clock_ms is None else clock_ms
        return ProxyView(self.store, self.chain, head.height, head.timestamp_ms, clock_ms, is_catching_up)

    def capsule(self, sequence: int) -> bytes:
        """Return the capsule of one of the patient's records."""
        return parse_blob(self.blobs[sequence].blob).capsule

    def request(
        self,
        prepared: PreparedGrant,
        sequences: Sequence[int] = (0,),
        *,
        key: PrivateKey | None = None,
        purpose: str = "TREAT",
        issued_ms: int | None = None,
        emergency: int | None = None,
        capsules: Sequence[bytes] | None = None,
    ) -> SignedRequest:
        """Return a signed request of the grantee, a new one with each call."""
        capsules = [self.capsule(sequence) for sequence in sequences] if capsules is None else capsules
        return sign_request(
            self.chain,
            key or self.grantee,
            grant_id=prepared.grant_id,
            purpose=purpose,
            records=zip(sequences, capsules, strict=True),
            issued_ms=self.now_ms() if issued_ms is None else issued_ms,
            nonce=next(self._requests).to_bytes(16, "big"),
            emergency=emergency,
        )
