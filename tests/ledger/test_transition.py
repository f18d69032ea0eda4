# SPDX-License-Identifier: GPL-3.0-or-later
"""The state transition: each rule, and the invariants over random sequences."""

from collections.abc import Callable, Sequence
from typing import get_args

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ledger import testing, transition
from ledger.acts import BlockContext
from ledger.bodies import (
    AuthoriseAuthor,
    Body,
    CommitRecord,
    RegisterInstitution,
    RegisterPatient,
    ReportMisbehaviour,
    Transfer,
)
from ledger.codec import encode
from ledger.crypto.hashing import ZERO_DIGEST
from ledger.crypto.keys import PrivateKey
from ledger.errors import InvalidInput, Rejection, RejectionReason
from ledger.genesis import Allocation, Member, chain_id, genesis_seed
from ledger.memory_store import MemoryStore
from ledger.miners import EpochProgress, MinerHistory, inverted
from ledger.patients import patient_keyblock_hash, patient_keyblock_signing_digest, record_id
from ledger.state import (
    ACCOUNTS,
    AUTHORISATIONS,
    EPOCHS,
    FEES,
    INSTITUTIONS,
    MINER_VERSIONS,
    MINERS,
    OFFENCES,
    PATIENTS,
    PROGRESS,
    RECORDS,
    SUPPLY,
    TALLIES,
    Account,
    Authorisation,
    State,
    Supply,
    next_state_digest,
    numbered_key,
    scan,
)
from ledger.store import Store
from ledger.transactions import CheckedTransaction, check_transaction
from ledger.transition import (
    HANDLERS,
    Execution,
    apply_transaction,
    apply_transactions,
    conclude,
    execute_genesis,
)

GENESIS = testing.genesis()
CHAIN = chain_id(GENESIS)
HEIGHT = 10
CONTEXT = BlockContext(
    HEIGHT, testing.GENESIS_TIMESTAMP_MS + 5, GENESIS.parameters, CHAIN, epoch=0, machines=testing.NO_MACHINES
)
FEE = testing.FEE_MICROCREDIT
BALANCE = testing.BALANCE_MICROCREDIT
HOSPITAL, OTHER, PAYER, PATIENT, NOBODY = (testing.key(number) for number in (0, 1, 5, 20, 99))
KEYBLOCK = testing.patient_keyblock(PATIENT, HOSPITAL.address)
RECORDS_OF_PATIENT = testing.record_chain(HOSPITAL.address, KEYBLOCK, 3)


def fresh() -> State:
    return State(MemoryStore(GENESIS))


def checked(raw: bytes) -> CheckedTransaction:
    return check_transaction(raw, testing.rules_of(CHAIN))


def apply(state: State, sender: PrivateKey, body: Body, **changes: int) -> None:
    """Apply a transaction with the sender's right nonce; `changes` alter its fields."""
    nonce = changes.pop("nonce", state.account(sender.address).nonce)
    apply_transaction(state, CONTEXT, checked(testing.signed(CHAIN, sender, body, nonce, **changes)))


def refuse(state: State, reason: RejectionReason, sender: PrivateKey, body: Body, **changes: int) -> str:
    """Apply a transaction, expect the reason, and check that nothing has changed."""
    before = state.changes()
    with pytest.raises(Rejection) as caught:
        apply(state, sender, body, **changes)
    assert caught.value.reason is reason
    assert state.changes() == before
    return caught.value.detail


def institution_body(name: str = "Hospital") -> RegisterInstitution:
    return RegisterInstitution(name, "AT", testing.encryption_key(0))


def patient_body(
    patient: PrivateKey = PATIENT, institution: bytes = HOSPITAL.address, allowance: int = 10**6
) -> RegisterPatient:
    keyblock = testing.patient_keyblock(patient, institution)
    return RegisterPatient(keyblock, patient.sign(patient_keyblock_signing_digest(CHAIN, keyblock)), allowance)


def registered() -> State:
    """Two institutions and a patient of the first."""
    state = fresh()
    apply(state, HOSPITAL, institution_body())
    apply(state, OTHER, institution_body("Other"))
    apply(state, HOSPITAL, patient_body())
    return state


# ---------------------------------------------------------------- genesis


def test_genesis_mints_the_allocations_and_accredits() -> None:
    execution = execute_genesis(GENESIS)
    state = dict(execution.changes)
    assert state[b"s"] == encode(Supply(BALANCE * len(GENESIS.allocations), 0, 0, 0))
    assert state[b"a" + PAYER.address] == encode(Account(0, BALANCE))
    assert (b"c" + HOSPITAL.address in state, b"c" + PAYER.address in state) == (True, False)
    assert execution.receipts == ()
    assert execution.state_digest == next_state_digest(ZERO_DIGEST, execution.changes)


def test_genesis_writes_each_accredited_miner_with_a_version_as_of_the_founding() -> None:
    members = tuple(Member(testing.key(number).public_key, 10**8 * number) for number in (1, 2, 3))
    store = MemoryStore(msgspec.structs.replace(GENESIS, committee=members))
    state = State(store)
    assert dict(scan(store, MINERS, b"", b"", 100)) == {
        member.public_key: MinerHistory(external_nano=member.external_nano) for member in members
    }
    for member in members:
        versions = list(scan(store, MINER_VERSIONS, member.public_key, b"", 100))
        assert versions == [(member.public_key + inverted(0), MinerHistory(external_nano=member.external_nano))]
    for table in (OFFENCES, TALLIES, FEES, EPOCHS):
        assert list(store.scan_state(table.prefix, b"", 1)) == []
    time = testing.GENESIS_TIMESTAMP_MS
    seed = genesis_seed(chain_id(store.genesis))
    assert state.progress() == EpochProgress(0, seed, 0, 0, bytes(20), 0, time, 0, (time,))


def test_a_genesis_that_contradicts_itself_is_not_executed() -> None:
    twice = msgspec.structs.replace(GENESIS, allocations=(Allocation(PAYER.address, 1),) * 2)
    with pytest.raises(InvalidInput, match="two opening balances"):
        execute_genesis(twice)


# ---------------------------------------------------------------- envelope


def test_transfer_moves_the_amount_and_the_fee_leaves_the_sender() -> None:
    state = fresh()
    apply(state, PAYER, Transfer(NOBODY.address, 7))
    assert state.account(PAYER.address) == Account(1, BALANCE - 7 - FEE)
    assert state.account(NOBODY.address) == Account(0, 7)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"expiry_height": HEIGHT - 1}, RejectionReason.EXPIRED),
        ({"expiry_height": HEIGHT + 1001}, RejectionReason.EXPIRY_TOO_FAR),
        ({"expiry_height": 2**63 - 1}, RejectionReason.EXPIRY_TOO_FAR),
        ({"nonce": 1}, RejectionReason.NONCE_GAP),
        ({"nonce": 2**63 - 1}, RejectionReason.NONCE_GAP),
        ({"fee_microcredit": 99}, RejectionReason.FEE_TOO_LOW),
        ({"fee_microcredit": BALANCE + 1}, RejectionReason.INSUFFICIENT_BALANCE),
        ({"fee_microcredit": 2**63 - 1}, RejectionReason.INSUFFICIENT_BALANCE),
    ],
)
def test_envelope_that_does_not_fit_is_refused(changes: dict[str, int], reason: RejectionReason) -> None:
    refuse(fresh(), reason, PAYER, Transfer(NOBODY.address, 1), **changes)


@pytest.mark.parametrize("expiry", [HEIGHT, HEIGHT + 1000])
def test_expiry_bounds_are_inclusive(expiry: int) -> None:
    apply(fresh(), PAYER, Transfer(NOBODY.address, 1), expiry_height=expiry)


def test_the_whole_balance_can_be_spent_and_the_minimum_fee_is_enough() -> None:
    state = fresh()
    apply(state, PAYER, Transfer(NOBODY.address, BALANCE - 100), fee_microcredit=100)
    assert state.account(PAYER.address) == Account(1, 0)


def test_a_transaction_counts_once() -> None:
    state = fresh()
    raw = testing.transfer(CHAIN, PAYER, NOBODY.address, 5)
    apply_transaction(state, CONTEXT, checked(raw))
    with pytest.raises(Rejection, match="nonce 0; the account's next is 1") as caught:
        apply_transaction(state, CONTEXT, checked(raw))
    assert caught.value.reason is RejectionReason.NONCE_USED
    assert state.account(NOBODY.address).balance_microcredit == 5


def test_an_account_without_credits_can_do_nothing() -> None:
    refuse(fresh(), RejectionReason.INSUFFICIENT_BALANCE, NOBODY, Transfer(PAYER.address, 0))


# ---------------------------------------------------------------- transfers


@pytest.mark.parametrize("amount", [BALANCE - FEE + 1, 2**63 - 1])
def test_transfer_beyond_the_balance_after_the_fee_is_refused(amount: int) -> None:
    refuse(fresh(), RejectionReason.INSUFFICIENT_BALANCE, PAYER, Transfer(NOBODY.address, amount))


@pytest.mark.parametrize("amount", [0, 5, BALANCE - FEE])
def test_transfer_to_oneself_costs_the_fee_only(amount: int) -> None:
    state = fresh()
    apply(state, PAYER, Transfer(PAYER.address, amount))
    assert state.account(PAYER.address) == Account(1, BALANCE - FEE)


def test_transfer_of_nothing_makes_no_account() -> None:
    state = fresh()
    apply(state, PAYER, Transfer(NOBODY.address, 0))
    assert state.get(ACCOUNTS, NOBODY.address) is None
    assert {key for key, _ in state.changes()} == {b"a" + PAYER.address}


def test_balances_stay_below_63_bits_when_one_account_collects_the_largest_supply() -> None:
    whole = (Allocation(PAYER.address, 2**61), Allocation(OTHER.address, 2**61 - 1))
    rich = msgspec.structs.replace(GENESIS, allocations=whole)
    state = State(MemoryStore(rich))
    raw = testing.signed(chain_id(rich), PAYER, Transfer(OTHER.address, 2**61 - FEE))
    apply_transaction(state, CONTEXT, check_transaction(raw, testing.rules_of(chain_id(rich))))
    assert state.account(OTHER.address).balance_microcredit == 2**62 - 1 - FEE


# ---------------------------------------------------------------- institutions


def test_accredited_account_becomes_an_institution() -> None:
    state = fresh()
    apply(state, HOSPITAL, institution_body("AKH"))
    entry = state.get(INSTITUTIONS, HOSPITAL.address)
    assert entry is not None
    assert (entry.name, entry.public_key, entry.registered_height) == ("AKH", HOSPITAL.public_key, HEIGHT)
    assert state.account(HOSPITAL.address) == Account(1, BALANCE - FEE)


def test_institution_needs_accreditation_and_registers_once() -> None:
    state = registered()
    refuse(state, RejectionReason.NOT_ACCREDITED, PAYER, institution_body())
    refuse(state, RejectionReason.INSTITUTION_EXISTS, HOSPITAL, institution_body("again"))


def test_a_patient_does_not_become_an_institution_nor_an_institution_a_patient() -> None:
    state = registered()
    refuse(state, RejectionReason.PATIENT_EXISTS, HOSPITAL, patient_body(OTHER))
    refuse(state, RejectionReason.PATIENT_EXISTS, HOSPITAL, patient_body(HOSPITAL))
    apply(state, HOSPITAL, patient_body(testing.key(2)))
    refuse(state, RejectionReason.PATIENT_EXISTS, testing.key(2), institution_body())


# ---------------------------------------------------------------- patients


def test_registration_stores_the_keyblock_funds_the_patient_and_authorises_the_institution() -> None:
    state = registered()
    patient = state.get(PATIENTS, PATIENT.address)
    assert patient is not None
    assert patient.keyblock == KEYBLOCK
    assert patient.last_record == patient.keyblock_hash == patient_keyblock_hash(KEYBLOCK)
    assert (patient.record_count, patient.registered_height) == (0, HEIGHT)
    assert state.account(PATIENT.address) == Account(0, 10**6)
    assert state.account(HOSPITAL.address) == Account(2, BALANCE - 2 * FEE - 10**6)
    assert state.get(AUTHORISATIONS, PATIENT.address + HOSPITAL.address) == Authorisation(
        allowed=True, changed_height=HEIGHT
    )


def test_registration_without_an_allowance_makes_no_account() -> None:
    state = registered()
    apply(state, HOSPITAL, patient_body(testing.key(21), allowance=0))
    assert state.get(ACCOUNTS, testing.key(21).address) is None


def test_patient_is_registered_once_by_the_institution_that_the_patient_signed_for() -> None:
    state = registered()
    someone = testing.key(21)
    refuse(state, RejectionReason.PATIENT_EXISTS, HOSPITAL, patient_body())
    refuse(state, RejectionReason.SENDER_MISMATCH, OTHER, patient_body(someone, HOSPITAL.address))
    refuse(state, RejectionReason.INSTITUTION_UNKNOWN, PAYER, patient_body(someone, PAYER.address))
    refuse(state, RejectionReason.INSUFFICIENT_BALANCE, HOSPITAL, patient_body(someone, allowance=BALANCE))


def test_patient_allows_and_forbids_authors() -> None:
    state = registered()
    apply(state, PATIENT, AuthoriseAuthor(PATIENT.address, OTHER.address, allowed=True))
    assert state.get(AUTHORISATIONS, PATIENT.address + OTHER.address) == Authorisation(
        allowed=True, changed_height=HEIGHT
    )
    apply(state, PATIENT, AuthoriseAuthor(PATIENT.address, OTHER.address, allowed=False))
    body = testing.record_body(OTHER.address, KEYBLOCK)
    refuse(state, RejectionReason.NOT_AUTHORISED, OTHER, body)


def test_only_patients_authorise_and_only_institutions_are_authorised() -> None:
    state = registered()
    refuse(state, RejectionReason.NOT_PERMITTED, PAYER, AuthoriseAuthor(PATIENT.address, OTHER.address, allowed=True))
    refuse(
        state,
        RejectionReason.INSTITUTION_UNKNOWN,
        PATIENT,
        AuthoriseAuthor(PATIENT.address, PAYER.address, allowed=True),
    )


# ---------------------------------------------------------------- records


def test_records_form_the_patients_chain() -> None:
    state = registered()
    for body in RECORDS_OF_PATIENT:
        apply(state, HOSPITAL, body)
    patient = state.get(PATIENTS, PATIENT.address)
    assert patient is not None
    assert (patient.record_count, patient.last_record) == (3, record_id(RECORDS_OF_PATIENT[-1].microblock))
    entry = state.get(RECORDS, numbered_key(PATIENT.address, 1))
    assert entry is not None
    assert entry.microblock == RECORDS_OF_PATIENT[1].microblock
    assert (entry.opening, entry.envelope) == (RECORDS_OF_PATIENT[1].opening, RECORDS_OF_PATIENT[1].envelope)
    assert (entry.committed_height, entry.committed_timestamp_ms) == (HEIGHT, CONTEXT.timestamp_ms)


Change = Callable[[CommitRecord], CommitRecord]


def _link(**fields: object) -> Change:
    return lambda body: msgspec.structs.replace(body, microblock=msgspec.structs.replace(body.microblock, **fields))


def _envelope(**fields: object) -> Change:
    return lambda body: msgspec.structs.replace(body, envelope=msgspec.structs.replace(body.envelope, **fields))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_link(sequence=0), RejectionReason.WRONG_SEQUENCE),
        (_link(sequence=2), RejectionReason.WRONG_SEQUENCE),
        (_link(previous=bytes(32)), RejectionReason.WRONG_PREVIOUS),
        (_link(previous=patient_keyblock_hash(KEYBLOCK)), RejectionReason.WRONG_PREVIOUS),
        (_link(patient_keyblock=bytes(32)), RejectionReason.WRONG_GENERATION),
        (_link(author=OTHER.address), RejectionReason.SENDER_MISMATCH),
        (_link(patient=NOBODY.address), RejectionReason.PATIENT_UNKNOWN),
        (_envelope(author=OTHER.address), RejectionReason.SENDER_MISMATCH),
        (_envelope(status="amended"), RejectionReason.MALFORMED),
        (_envelope(status="entered-in-error"), RejectionReason.MALFORMED),
        (_envelope(label="wrong-patient"), RejectionReason.MALFORMED),
        (_envelope(replaced_by=bytes(32)), RejectionReason.MALFORMED),
    ],
)
def test_record_that_does_not_fit_is_refused(change: Change, reason: RejectionReason) -> None:
    state = registered()
    apply(state, HOSPITAL, RECORDS_OF_PATIENT[0])
    template = checked(testing.signed(CHAIN, HOSPITAL, RECORDS_OF_PATIENT[1], state.account(HOSPITAL.address).nonce))
    # The opening no longer fits a changed envelope; that is the check before this one, and not its subject.
    transaction = msgspec.structs.replace(template.transaction, body=change(RECORDS_OF_PATIENT[1]))
    before = state.changes()
    with pytest.raises(Rejection) as caught:
        apply_transaction(state, CONTEXT, msgspec.structs.replace(template, transaction=transaction))
    assert caught.value.reason is reason
    assert state.changes() == before


def test_author_must_be_an_institution_and_authorised() -> None:
    state = registered()
    refuse(state, RejectionReason.INSTITUTION_UNKNOWN, PAYER, testing.record_body(PAYER.address, KEYBLOCK))
    refuse(state, RejectionReason.NOT_AUTHORISED, OTHER, testing.record_body(OTHER.address, KEYBLOCK))
    apply(state, PATIENT, AuthoriseAuthor(PATIENT.address, OTHER.address, allowed=True))
    apply(state, OTHER, testing.record_body(OTHER.address, KEYBLOCK))


# ---------------------------------------------------------------- microblocks


def execute(store: Store, digest: bytes, transactions: Sequence[CheckedTransaction]) -> Execution:
    state = State(store)
    return conclude(state, digest, apply_transactions(state, CONTEXT, transactions).receipts)


def test_microblock_gives_each_transaction_a_receipt_and_collects_the_fees() -> None:
    store = MemoryStore(GENESIS)
    good = testing.transfer(CHAIN, PAYER, NOBODY.address, 5)
    late = testing.transfer(CHAIN, PAYER, NOBODY.address, 5, nonce=7)
    transactions = testing.check(CHAIN, [good, late, good])
    execution = execute(store, store.head().state_digest, transactions)
    assert [(receipt.position, receipt.reason) for _, receipt in execution.receipts] == [
        (0, ""),
        (1, "nonce_gap"),
        (2, "nonce_used"),
    ]
    assert dict(execution.changes)[b"s"] == encode(Supply(BALANCE * 16, 0, FEE, 0))
    assert [key for key, _ in execution.changes] == sorted(key for key, _ in execution.changes)
    assert execution.state_digest == next_state_digest(store.head().state_digest, execution.changes)
    assert apply_transactions(State(store), CONTEXT, transactions).fees_microcredit == FEE


def test_what_happens_to_the_state_between_transactions_and_conclusion_is_part_of_the_microblock() -> None:
    store = MemoryStore(GENESIS)
    state = State(store)
    progress = msgspec.structs.replace(state.progress(), microblocks=1)
    state.put(PROGRESS, b"", progress)
    execution = conclude(state, store.head().state_digest, ())
    assert execution.changes == ((b"g", encode(progress)),)
    assert execution.state_digest == next_state_digest(store.head().state_digest, execution.changes)


def test_microblock_in_which_nothing_takes_effect_leaves_state_and_digest() -> None:
    store = MemoryStore(GENESIS)
    late = testing.transfer(CHAIN, PAYER, NOBODY.address, 5, nonce=7)
    for transactions in ((), testing.check(CHAIN, [late])):
        execution = execute(store, b"d" * 32, transactions)
        assert (execution.changes, execution.state_digest) == ((), b"d" * 32)


def test_later_transactions_see_what_earlier_ones_of_the_block_did() -> None:
    store = MemoryStore(GENESIS)
    raws = [
        testing.transfer(CHAIN, PAYER, NOBODY.address, 5 * FEE),
        testing.transfer(CHAIN, NOBODY, PAYER.address, 4 * FEE),
    ]
    execution = execute(store, ZERO_DIGEST, testing.check(CHAIN, raws))
    assert [receipt.reason for _, receipt in execution.receipts] == ["", ""]
    assert dict(execution.changes)[b"a" + NOBODY.address] == encode(Account(1, 0))


def test_each_kind_of_body_has_one_handler_and_one_tag() -> None:
    kinds = get_args(Body)
    assert set(HANDLERS) == set(kinds)
    assert sorted(kind.__struct_config__.tag for kind in kinds) == list(range(1, len(kinds) + 1))


# ---------------------------------------------------------------- invariants over random sequences

ACTORS = [*range(6), 20, 21, 22, 99]
actors = st.sampled_from(ACTORS).map(testing.key)
amounts = st.sampled_from([0, 1, FEE, 10**6, BALANCE - FEE, BALANCE, 2**63 - 1]) | st.integers(0, 2 * BALANCE)
bodies = st.one_of(
    st.builds(Transfer, actors.map(lambda key: key.address), amounts),
    st.just(institution_body()),
    st.builds(patient_body, actors, actors.map(lambda key: key.address), amounts),
    st.builds(
        AuthoriseAuthor, actors.map(lambda key: key.address), actors.map(lambda key: key.address), allowed=st.booleans()
    ),
    st.builds(
        lambda author, patient, institution, sequence: testing.record_chain(
            author, testing.patient_keyblock(patient, institution), sequence + 1
        )[-1],
        st.sampled_from([HOSPITAL.address, OTHER.address]),
        st.sampled_from([testing.key(20), testing.key(21)]),
        st.just(HOSPITAL.address),
        st.integers(0, 1),
    ),
    st.builds(
        lambda make, number, chain: ReportMisbehaviour(make(chain, number)),
        st.sampled_from([testing.votes_evidence, testing.microblocks_evidence]),
        st.sampled_from([0, 1, 2, 99]),
        st.sampled_from([CHAIN, CHAIN, bytes(32)]),
    ),
)
steps = st.tuples(
    actors | st.sampled_from([HOSPITAL, OTHER]),
    bodies,
    st.sampled_from([0, 0, 0, 0, 0, -1, 1]),
    st.sampled_from([FEE, FEE, 100, 99, BALANCE]),
    st.sampled_from([HEIGHT, HEIGHT + 1000, HEIGHT - 1]) | st.just(HEIGHT),
)


def credits_in(store: Store) -> int:
    return sum(account.balance_microcredit for _, account in scan(store, ACCOUNTS, b"", b"", 10_000))


@settings(max_examples=60)
@given(st.lists(steps, max_size=25), st.integers(1, 6))
def test_i7_credits_are_conserved_and_a_rejection_changes_nothing(
    sequence: list[tuple[PrivateKey, Body, int, int, int]], per_block: int
) -> None:
    store = MemoryStore(GENESIS)
    nonces: dict[bytes, int] = {}
    raws = []
    opening: list[tuple[PrivateKey, Body, int, int, int]] = [
        (HOSPITAL, institution_body(), 0, FEE, HEIGHT),
        (HOSPITAL, patient_body(), 0, FEE, HEIGHT),
    ]
    state = State(store)
    effective = fees = burnt = 0
    for sender, body, nonce_offset, fee, expiry in [*opening, *sequence]:
        nonce = max(0, nonces.get(sender.address, 0) + nonce_offset)
        raw = testing.signed(CHAIN, sender, body, nonce, fee_microcredit=fee, expiry_height=expiry)
        raws.append(raw)
        before, account = state.changes(), state.account(sender.address)
        try:
            costly = apply_transaction(state, CONTEXT, checked(raw))
        except Rejection:
            assert state.changes() == before
            continue
        burnt += 0 if costly is None else GENESIS.parameters.false_evidence_microcredit
        effective, fees = effective + 1, fees + fee
        nonces[sender.address] = nonce + 1
        assert state.account(sender.address).nonce == account.nonce + 1 == nonce + 1
    for start in range(0, len(raws), per_block):
        part = testing.check(CHAIN, raws[start : start + per_block])
        head = store.head()
        execution = execute(store, head.state_digest, part)
        for key, value in execution.changes:
            store._change(key, value)
    supply = store.get_state(SUPPLY.prefix)
    assert supply is not None
    total = SUPPLY.decode(supply)
    # Blocks of any size end in the state that one sequence ends in, apart from the fees, which blocks collect.
    state.put(SUPPLY, b"", msgspec.structs.replace(state.supply(), fees_in_flight_microcredit=fees))
    assert dict(state.changes()) == {key: store.get_state(key) for key, _ in state.changes()}
    assert (total.fees_in_flight_microcredit, total.burnt_microcredit) == (fees, burnt)
    assert total.minted_microcredit - total.burnt_microcredit == credits_in(store) + fees
    assert effective >= len(opening)
    for _, account in scan(store, ACCOUNTS, b"", b"", 10_000):
        assert 0 <= account.balance_microcredit < 2**62


def test_nothing_is_below_the_genesis() -> None:
    below = State(transition._EmptyReader())
    assert below.account(PAYER.address) == Account(0, 0)
    assert list(scan(transition._EmptyReader(), ACCOUNTS, b"", b"", 10)) == []
