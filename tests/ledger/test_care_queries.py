# SPDX-License-Identifier: GPL-3.0-or-later
"""What patients decide, through whole microblocks of signed transactions in either store, and every question about it."""

from collections.abc import Iterator, Sequence

import msgspec
import pytest

from ledger import queries, testing
from ledger.bodies import (
    AppointGuardians,
    ApproveEmergency,
    Body,
    ConfirmDeletion,
    ConfirmErasure,
    DelegatePowers,
    GrantAccess,
    OpenEmergency,
    RegisterInstitution,
    ReviewEmergency,
    RevokeAccess,
)
from ledger.crypto.development_key import DEVELOPMENT_VERIFYING_KEY
from ledger.crypto.keys import PrivateKey
from ledger.crypto.mountain_range import is_complete, verify
from ledger.errors import NotFound
from ledger.genesis import chain_id
from ledger.patients import KeyHolder, envelope_digest, record_id
from ledger.sharing import GrantTerms, grant_id
from ledger.state import ERASURES, LABELS, RECORDS, numbered_key
from ledger.store import Store
from ledger.testing_patients import backup_digest, change_keys, grant_terms, label, next_keyblock, permission
from records.chameleon_keys import DEVELOPMENT_PROVING_KEY
from records.chameleon_prover import Prover

GENESIS = testing.genesis()
CHAIN = chain_id(GENESIS)
HOSPITAL, CLINIC, *PROXIES = (testing.key(number) for number in range(4))
ALICE, BOB = testing.key(10), testing.key(11)
NEW = testing.key(30)
KEYBLOCK = testing.patient_keyblock(ALICE, HOSPITAL.address)
SECOND = next_keyblock(KEYBLOCK, NEW, 30)
RECORD_BODIES = testing.record_chain(HOSPITAL.address, KEYBLOCK, 5)
PROVER = Prover(DEVELOPMENT_PROVING_KEY, DEVELOPMENT_VERIFYING_KEY)


class Network:
    """A store, and the nonces of all who act."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def commit(self, *acts: tuple[PrivateKey, Body]) -> None:
        """Commit signed transactions as one microblock, of which each must take effect."""
        nonces: dict[bytes, int] = {}
        raws = []
        for sender, body in acts:
            nonce = nonces.get(sender.address, queries.account(self.store, sender.address).nonce)
            nonces[sender.address] = nonce + 1
            raws.append(testing.signed(CHAIN, sender, body, nonce))
        update = testing.next_update(self.store, [raws])
        assert [receipt.reason for _, receipt in update.receipts] == [""] * len(raws)
        self.store.put_batches([testing.batch(CHAIN, raws)])
        self.store.commit(update)

    @property
    def now_ms(self) -> int:
        """Time of the next microblock."""
        return self.store.head().timestamp_ms + 1_000


@pytest.fixture
def network(store: Store) -> Network:
    made = Network(store)
    institutions = [
        (testing.key(number), RegisterInstitution(f"Institution {number}", "AT", testing.encryption_key(number)))
        for number in range(4)
    ]
    made.commit(*institutions)
    raws = [
        testing.register_patient(CHAIN, HOSPITAL, patient, 1 + number) for number, patient in enumerate((ALICE, BOB))
    ]
    testing.commit(store, raws)
    made.commit(*((HOSPITAL, body) for body in RECORD_BODIES))
    return made


def terms(number: int = 0, **changes: object) -> GrantTerms:
    proxies = [proxy.address for proxy in PROXIES]
    made = grant_terms(ALICE.address, CLINIC.address, testing.encryption_key(1), proxies, number=number)
    return msgspec.structs.replace(made, **changes)


def names(found: Sequence[tuple[bytes, object]]) -> list[bytes]:
    return [name for name, _ in found]


def test_grants_are_found_by_everyone_concerned_page_by_page(network: Network) -> None:
    store = network.store
    made = [terms(number) for number in range(5)]
    ids = [grant_id(item) for item in made]
    network.commit(*((ALICE, GrantAccess(item)) for item in made))
    assert queries.grant(store, ids[3]).number == 3
    assert names(list(queries.patient_grants(store, ALICE.address))) == ids
    assert names(list(queries.patient_grants(store, ALICE.address, start=2, limit=2))) == ids[2:4]
    assert list(queries.patient_grants(store, BOB.address)) == []
    for found in (queries.grantee_grants(store, CLINIC.address), queries.proxy_grants(store, PROXIES[0].address)):
        assert names(list(found)) == sorted(ids)
    third = sorted(ids)[2]
    assert names(list(queries.grantee_grants(store, CLINIC.address, third, 2))) == sorted(ids)[2:4]
    assert names(list(queries.proxy_grants(store, PROXIES[1].address, third + b"\0"))) == sorted(ids)[3:]
    assert [grant.terms for _, grant in queries.patient_grants(store, ALICE.address)] == made
    with pytest.raises(NotFound, match="no grant"):
        queries.grant(store, bytes(32))


def test_a_proxy_that_was_away_finds_what_it_owes(network: Network) -> None:
    store = network.store
    ids = [grant_id(terms(number)) for number in range(4)]
    network.commit(*((ALICE, GrantAccess(terms(number))) for number in range(4)))
    network.commit(*((ALICE, RevokeAccess(identifier)) for identifier in ids[:3]))
    network.commit((PROXIES[0], ConfirmDeletion(ids[0])))
    owed = sorted(ids[1:3])
    assert names(list(queries.deletions_owed(store, PROXIES[0].address))) == owed
    assert names(list(queries.deletions_owed(store, PROXIES[0].address, owed[1]))) == owed[1:]
    assert names(list(queries.deletions_owed(store, PROXIES[1].address))) == sorted(ids[:3])
    assert names(list(queries.proxy_grants(store, PROXIES[0].address))) == sorted(ids[1:])
    assert [bool(grant.revoked_height) for _, grant in queries.patient_grants(store, ALICE.address)] == [True] * 3 + [
        False
    ]


def test_generations_holders_guardians_and_delegations_are_found(network: Network) -> None:
    store = network.store
    guardians = tuple(sorted((BOB.address, CLINIC.address)))
    network.commit(
        (ALICE, AppointGuardians(ALICE.address, guardians, 2, backup_digest())),
        (ALICE, DelegatePowers(ALICE.address, BOB.address, ("grant",), network.now_ms + 10**6)),
        (ALICE, DelegatePowers(ALICE.address, CLINIC.address, ("label",), network.now_ms + 10**6)),
    )
    network.commit((CLINIC, change_keys(CHAIN, SECOND, NEW, [BOB, CLINIC])))
    assert [entry.keyblock for entry in queries.key_generations(store, ALICE.address)] == [KEYBLOCK, SECOND]
    assert [entry.keyblock for entry in queries.key_generations(store, ALICE.address, start=1)] == [SECOND]
    assert queries.holder(store, NEW.address) == KeyHolder(ALICE.address, 1)
    assert queries.holder(store, CLINIC.address) is None
    assert queries.patient(store, ALICE.address).keyblock == SECOND
    found = queries.guardians(store, ALICE.address)
    assert found is not None
    assert found.guardians == guardians
    assert queries.guardians(store, BOB.address) is None
    delegates = sorted((BOB.address, CLINIC.address))
    assert names(list(queries.delegations(store, ALICE.address))) == delegates
    assert names(list(queries.delegations(store, ALICE.address, delegates[1]))) == delegates[1:]
    delegation = queries.delegation(store, ALICE.address, BOB.address)
    assert delegation is not None
    assert delegation.powers == ("grant",)
    assert queries.delegation(store, ALICE.address, HOSPITAL.address) is None


def test_labels_and_erasures_of_a_record_are_found_in_order(network: Network) -> None:
    store = network.store
    record = RECORD_BODIES[2]
    before = (store.block_hash(3), queries.patient(store, ALICE.address))
    for number in range(3):
        permitted = msgspec.structs.replace(
            permission(record, HOSPITAL.address, number=number), label=f"label {number}", may_erase=True
        )
        made = label(CHAIN, record, KEYBLOCK, permitted, ALICE)
        statement = (made.chameleon_key, made.chameleon_hash, envelope_digest(made.envelope))
        proof = PROVER.adapt(testing.chameleon_trapdoor(0)[0], *statement)
        network.commit((HOSPITAL, msgspec.structs.replace(made, proof=proof)))
        record = msgspec.structs.replace(record, envelope=made.envelope)
    network.commit((CLINIC, ConfirmErasure(ALICE.address, 2)), (PROXIES[0], ConfirmErasure(ALICE.address, 2)))
    history = list(queries.labels(store, ALICE.address, 2))
    assert [item.permission.label for item in history] == ["label 0", "label 1", "label 2"]
    assert [item.permission.number for item in queries.labels(store, ALICE.address, 2, start=1, limit=1)] == [1]
    assert list(queries.labels(store, ALICE.address, 1)) == []
    assert queries.record(store, ALICE.address, 2).envelope == record.envelope
    erasers = sorted((CLINIC.address, PROXIES[0].address))
    assert names(list(queries.erasures(store, ALICE.address, 2))) == erasers
    assert names(list(queries.erasures(store, ALICE.address, 2, erasers[1]))) == erasers[1:]
    # I11: the patient's chain and the block that holds the record stay as they were.
    assert (store.block_hash(3), queries.patient(store, ALICE.address)) == before
    assert queries.record(store, ALICE.address, 2).record_id == record_id(RECORD_BODIES[2].microblock)


def test_keys_of_labels_and_erasures_lie_below_their_record_and_no_other(network: Network) -> None:
    del network
    for table in (RECORDS, LABELS, ERASURES):
        assert len({table.prefix + numbered_key(ALICE.address, number) for number in (0, 1, 256)}) == 3
    assert not numbered_key(ALICE.address, 1, 0).startswith(numbered_key(ALICE.address, 256))


def test_emergencies_and_reviews_are_found(network: Network) -> None:
    store = network.store
    sleeping = [terms(number, emergency_approvals=2) for number in range(2)]
    ids = [grant_id(item) for item in sleeping]
    network.commit(*((ALICE, GrantAccess(item)) for item in sleeping))
    until_ms = network.now_ms + 60_000
    grant = queries.grant(store, ids[0])
    assert queries.awake_emergency(store, grant, network.now_ms) is None
    network.commit(*((CLINIC, OpenEmergency(identifier, "stroke", until_ms)) for identifier in ids))
    assert queries.awake_emergency(store, queries.grant(store, ids[0]), network.now_ms) is None
    network.commit(*((proxy, ApproveEmergency(ALICE.address, number)) for number in range(2) for proxy in PROXIES))
    grant = queries.grant(store, ids[1])
    assert queries.awake_emergency(store, grant, until_ms - 1) == queries.emergency(store, ALICE.address, 1)
    assert queries.awake_emergency(store, grant, until_ms) is None
    assert [number for number, _ in queries.emergencies(store, ALICE.address)] == [0, 1]
    assert [number for number, _ in queries.emergencies(store, ALICE.address, start=1)] == [1]
    assert [(address, number) for address, number, _ in queries.reviews(store)] == [
        (ALICE.address, 0),
        (ALICE.address, 1),
    ]
    assert [number for _, number, _ in queries.reviews(store, ALICE.address, 1)] == [1]
    network.commit(
        (ALICE, ReviewEmergency(ALICE.address, 0, is_justified=True)),
        (ALICE, ReviewEmergency(ALICE.address, 1, is_justified=False)),
    )
    assert [(number, found.verdict) for _, number, found in queries.reviews(store)] == [(1, "unjustified")]
    assert queries.awake_emergency(store, queries.grant(store, ids[1]), until_ms - 1) is None
    with pytest.raises(NotFound, match="no emergency 2"):
        queries.emergency(store, ALICE.address, 2)


def test_the_list_of_records_is_complete_and_each_place_is_proved(network: Network) -> None:
    store = network.store
    patient = queries.patient(store, ALICE.address)
    identifiers = [record.record_id for record in queries.patient_records(store, ALICE.address)]
    assert is_complete(patient.record_peaks, patient.record_count, identifiers)
    for hidden in range(5):
        assert not is_complete(patient.record_peaks, 5, identifiers[:hidden] + identifiers[hidden + 1 :])
    for sequence, identifier in enumerate(identifiers):
        path = queries.prove_record(store, ALICE.address, sequence)
        assert verify(patient.record_peaks, patient.record_count, sequence, identifier, path)
    for sequence in (-1, 5):
        with pytest.raises(NotFound, match=r"no record -?\d; there are 5"):
            queries.prove_record(store, ALICE.address, sequence)
    with pytest.raises(NotFound, match="no record 5"):
        queries.record(store, ALICE.address, 5)
    with pytest.raises(NotFound, match="not registered"):
        queries.prove_record(store, CLINIC.address, 0)


class _Counting:
    """Counts what a question reads."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.read = 0

    def get_state(self, key: bytes) -> bytes | None:
        self.read += 1
        return self._store.get_state(key)

    def scan_state(self, prefix: bytes, start: bytes, limit: int) -> Iterator[tuple[bytes, bytes]]:
        for entry in self._store.scan_state(prefix, start, limit):
            self.read += 1
            yield entry


def test_a_patients_history_reads_the_patients_own_records_only(network: Network) -> None:
    store = network.store
    bobs = testing.record_chain(HOSPITAL.address, testing.patient_keyblock(BOB, HOSPITAL.address), 40)
    network.commit(*((HOSPITAL, body) for body in bobs))
    counting = _Counting(store)
    assert len(list(queries.patient_records(counting, ALICE.address))) == 5
    assert counting.read == 5
    queries.prove_record(counting, ALICE.address, 4)
    assert counting.read == 5 + 1 + 5
