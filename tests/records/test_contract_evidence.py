# SPDX-License-Identifier: GPL-3.0-or-later
"""Evidence about off-chain contracts: what final batches say, and nothing else, whoever made the file."""

import random
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contracts.batch_data import prove_leaf
from contracts.machine import Outcome
from contracts.machines.micro_fees import balance_key
from contracts.reading import Reader
from contracts.registry import Registry
from ledger.blocks import SignedKeyblock
from ledger.codec import encode
from ledger.contract_bodies import ChallengeBatch, CloseContract
from ledger.offchain import ContractTerms, WrongEnd
from ledger.partial_tree import WitnessEntry
from records.claims import Claim, ContractValueClaim, EvidenceRefused, Fault, OperationClaim
from records.evidence import decode_evidence, verify
from tests.contracts.kit import recommitted
from tests.records.contract_evidence_kit import CONTRACT, OPERATOR, READER, REFERENCE, Contract, settled
from tests.records.evidence_kit import OTHER, PATIENT, Network, hash_of

BOUND = ("operation", "deposit", "refused", "forced again", "value")
"""Kinds of which every byte is bound."""
KINDS = (*BOUND, "absent value")


class Stage(msgspec.Struct, frozen=True):
    """A contract with final batches, and a good file of each kind."""

    contract: Contract
    keyblock: SignedKeyblock
    claims: dict[str, Claim]
    files: dict[str, bytes]


@pytest.fixture(scope="module")
def stage() -> Stage:
    network = Network()
    contract = settled(network)
    keyblock = network.settle()
    claims: dict[str, Claim] = {
        "operation": contract.operation(1),
        "deposit": contract.operation(0),
        "refused": contract.operation(2),
        "forced again": contract.operation(4),
        "value": contract.value(1),
        "absent value": contract.value(1, b"mw" + PATIENT.address),
    }
    files = {kind: network.gather(keyblock, claim, READER)[0] for kind, claim in claims.items()}
    return Stage(contract, keyblock, claims, files)


def said(stage: Stage, kind: str) -> str:
    return "\n".join(verify(stage.files[kind], hash_of(stage.keyblock), READER).proven)


def refusal(act: Callable[[], object]) -> EvidenceRefused:
    with pytest.raises(EvidenceRefused) as refused:
        act()
    return refused.value


# ---------------------------------------------------------------- what is said


def test_an_operation_is_proved_with_sender_outcome_and_batch(stage: Stage) -> None:
    text = said(stage, "operation")
    assert f"contract {CONTRACT.hex()} runs machine micro_fees 1" in text
    assert "batch 0 of it was committed in microblock" in text
    assert "is final" in text
    assert f"a request of 2 operations by account {PATIENT.address.hex()}, which signed it" in text
    assert f'"recipient": "{OTHER.address.hex()}", "amount_microcredit": 7' in text
    assert "operation 0: " in text
    assert "done, answered 4993" in text
    assert "operation 1: " in text
    found = verify(stage.files["operation"], hash_of(stage.keyblock), READER)
    assert found.claim == "operation"
    assert found.facts["outcomes"] == ({"code": "", "result": 4_993}, {"code": "", "result": 4_985})
    assert any("the contract takes their senders' word" in line for line in found.not_proven)


def test_deposits_refusals_and_doubled_requests_are_told_apart(stage: Stage) -> None:
    assert "by the chain itself: a deposit" in said(stage, "deposit")
    assert '"amount_microcredit": 5000' in said(stage, "deposit")
    assert "refused: amount_too_large" in said(stage, "refused")
    assert "the request as a whole was refused: wrong_sequence" in said(stage, "forced again")


def test_a_value_is_named_and_so_is_its_absence(stage: Stage) -> None:
    assert f"at the end of the batch, balance:{PATIENT.address.hex()} was 4976" in said(stage, "value")
    assert f"there was no withdrawn:{PATIENT.address.hex()}" in said(stage, "absent value")
    assert verify(stage.files["value"], hash_of(stage.keyblock), READER).facts["value"] == 4_976


def test_a_value_of_several_parts_is_shown_as_json(stage: Stage) -> None:
    class Windows(Reader):
        def read_entry(self, terms: ContractTerms, key: bytes, value: bytes | None) -> tuple[str, Any]:
            return "window:1", {"count": 4, "lowest": -71}

    found = verify(stage.files["value"], hash_of(stage.keyblock), Windows(Registry(())))
    assert found.proven[-1].endswith('window:1 was {"count": 4, "lowest": -71}')


def test_who_does_not_know_the_machine_still_checks_all_but_reads_bytes(stage: Stage) -> None:
    stranger = Reader(Registry(()))
    found = verify(stage.files["operation"], hash_of(stage.keyblock), stranger)
    operations = found.facts["operations"]
    assert isinstance(operations, tuple)
    assert all(bytes.fromhex(item) for item in operations)
    value = verify(stage.files["value"], hash_of(stage.keyblock), stranger)
    assert value.facts["name"] == (b"mb" + PATIENT.address).hex()


def test_nothing_is_said_about_contracts_without_a_reader(stage: Stage) -> None:
    for raw in stage.files.values():
        with pytest.raises(EvidenceRefused) as refused:
            verify(raw, hash_of(stage.keyblock))
        assert refused.value.reason is Fault.NOT_SO


# ---------------------------------------------------------------- nothing can be changed


@pytest.mark.parametrize("kind", BOUND)
def test_any_flipped_byte_is_refused_with_a_reason(stage: Stage, kind: str) -> None:
    raw, trusted = stage.files[kind], hash_of(stage.keyblock)
    chance = random.Random(kind)
    for place in range(len(raw)):
        changed = bytearray(raw)
        changed[place] ^= 1 << chance.randrange(8)
        with pytest.raises(EvidenceRefused) as refused:
            verify(bytes(changed), trusted, READER)
        assert isinstance(refused.value.reason, Fault)


@settings(max_examples=200)
@given(data=st.data())
def test_whatever_else_is_done_to_a_file_it_is_refused(stage: Stage, data: st.DataObject) -> None:
    raw = stage.files[data.draw(st.sampled_from(BOUND))]
    start, stop = sorted(data.draw(st.tuples(st.integers(0, len(raw)), st.integers(0, len(raw)))))
    changed = raw[:start] + data.draw(st.binary(max_size=40)) + raw[stop:]
    if changed == raw:
        return
    with pytest.raises(EvidenceRefused):
        verify(changed, hash_of(stage.keyblock), READER)


def test_a_changed_proof_of_an_absence_proves_another_true_one_or_nothing(stage: Stage) -> None:
    raw, chance = stage.files["absent value"], random.Random("absence")
    key = b"mw" + PATIENT.address
    others = 0
    for place in range(len(raw)):
        changed = bytearray(raw)
        changed[place] ^= 1 << chance.randrange(8)
        try:
            found = verify(bytes(changed), hash_of(stage.keyblock), READER)
        except EvidenceRefused:
            continue
        entry = found.facts["entry"]
        assert isinstance(entry, WitnessEntry)
        assert (entry.value, stage.contract.states[1].get(entry.key)) == (None, None)
        assert entry.key != key
        others += 1
    assert others <= len(key)


def test_a_claim_cannot_be_put_into_the_file_of_another(stage: Stage) -> None:
    file = decode_evidence(stage.files["operation"])
    for kind, claim in stage.claims.items():
        changed = encode(msgspec.structs.replace(file, claim=claim))
        if changed == stage.files[kind]:
            continue  # all rest on the same contract; those of the same batch on the same entries
        with pytest.raises(EvidenceRefused):
            verify(changed, hash_of(stage.keyblock), READER)


# ---------------------------------------------------------------- what is not so cannot be claimed


def operation(stage: Stage) -> OperationClaim:
    found = stage.claims["operation"]
    assert isinstance(found, OperationClaim)
    return found


def test_what_did_not_happen_cannot_be_claimed(stage: Stage) -> None:
    contract, claim = stage.contract, operation(stage)

    def fault(other: Claim) -> Fault:
        return refusal(lambda: contract.network.gather(stage.keyblock, other, READER)).reason

    def changed(**fields: object) -> OperationClaim:
        return msgspec.structs.replace(claim, **fields)

    better = encode((Outcome("", b"\x07"), Outcome("", b"\x07")))
    elsewhere = prove_leaf(contract.data(1), 0)
    leaf = msgspec.structs.replace(claim.proof.leaf, outcomes_digest=REFERENCE)
    assert fault(changed(outcomes=better)) is Fault.CONTRADICTION
    assert fault(changed(request=contract.payment(1))) is Fault.CONTRADICTION
    assert fault(changed(proof=elsewhere)) is Fault.CONTRADICTION
    assert fault(changed(proof=msgspec.structs.replace(claim.proof, index=0))) is Fault.CONTRADICTION
    assert fault(changed(proof=msgspec.structs.replace(claim.proof, leaf=leaf))) is Fault.CONTRADICTION
    assert fault(changed(proof=msgspec.structs.replace(claim.proof, path=()))) is Fault.CONTRADICTION
    assert fault(changed(number=1)) is Fault.CONTRADICTION
    assert fault(changed(number=2)) is Fault.NOT_SO
    assert fault(changed(number=2**63 - 1)) is Fault.NOT_SO
    assert fault(changed(contract_id=REFERENCE)) is Fault.NOT_SO


def test_a_value_cannot_be_claimed_that_was_not_there(stage: Stage) -> None:
    contract = stage.contract

    def fault(other: ContractValueClaim) -> Fault:
        return refusal(lambda: contract.network.gather(stage.keyblock, other, READER)).reason

    claim = contract.value(1)
    assert (
        fault(contract.value(1, entry=msgspec.structs.replace(claim.entry, value=encode(9_999)))) is Fault.WRONG_PROOF
    )
    assert fault(contract.value(1, entry=msgspec.structs.replace(claim.entry, value=None))) is Fault.WRONG_PROOF
    assert fault(contract.value(0, number=1)) is Fault.WRONG_PROOF
    other = msgspec.structs.replace(claim.entry, key=b"mb" + OTHER.address)
    assert fault(contract.value(1, entry=other)) is Fault.WRONG_PROOF
    assert fault(contract.value(1, number=7)) is Fault.NOT_SO


def test_a_batch_that_can_still_be_challenged_proves_nothing_yet() -> None:
    network = Network()
    contract = Contract(network)
    contract.fund()
    contract.pay(7)
    contract.commit()
    pending = network.settle()
    refused = refusal(lambda: network.gather(pending, contract.operation(1), READER))
    assert refused.reason is Fault.PENDING
    assert "can be challenged until microblock" in str(refused)
    assert refusal(lambda: network.gather(pending, contract.value(0), READER)).reason is Fault.PENDING
    contract.wait()
    final = network.settle()
    raw, found = network.gather(final, contract.operation(1), READER)
    assert verify(raw, hash_of(final), READER) == found
    # The file of the later keyblock does not serve with the earlier one.
    assert refusal(lambda: verify(raw, hash_of(pending), READER)).reason is Fault.WRONG_KEYBLOCK


def test_what_fraud_has_undone_counts_no_more() -> None:
    network = Network()
    contract = settled(network)
    contract.pay(3)
    honest = contract.cut()
    contract.commit(recommitted(honest, new_root=REFERENCE))
    last = prove_leaf(contract.data(2), honest.commitment.leaf_count - 1)
    contract.act(11, ChallengeBatch(CONTRACT, 2, WrongEnd(last)))
    contract.wait()
    keyblock = network.settle()
    refused = refusal(lambda: network.gather(keyblock, contract.operation(5), READER))
    assert refused.reason is Fault.NOT_SO
    assert "does not count: there are 2 that do, and the contract is frozen" in str(refused)
    # What was final before stands, whatever the operator did later.
    network.gather(keyblock, contract.operation(1), READER)
    network.gather(keyblock, contract.value(1), READER)


def test_a_closed_contract_proves_as_an_open_one() -> None:
    network = Network()
    contract = settled(network)
    contract.act(OPERATOR, CloseContract(CONTRACT))
    keyblock = network.settle()
    _, found = network.gather(keyblock, contract.value(0, b"mb" + OTHER.address), READER)
    assert found.facts["value"] == 15
    assert balance_key(OTHER.address)
