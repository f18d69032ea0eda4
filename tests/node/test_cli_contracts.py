# SPDX-License-Identifier: GPL-3.0-or-later
"""`spchain contract`: the way of an operation from the sender's words to a final batch and back into credits, and every refusal."""

import json
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest

from contracts.operator import Answer
from ledger.offchain import sign_receipt
from node.client import NodeClient
from node.offchain.statuses import SendOutcome
from tests.node.care_cli import answer, refused
from tests.node.contract_cli import PAYMENT, Spchain, account, client, funded, node, opened, pay, spchain, until
from tests.node.contract_kit import ALICE, BOB, CAROL, OPERATOR, RULES, ContractNode

__all__ = ["client", "node", "spchain"]


def send(spchain: Spchain, contract: str, operation: object, *arguments: str, key: str = "alice") -> Any:  # noqa: ANN401 -- JSON
    text = json.dumps(operation)
    return answer(spchain("contract", "send", contract, text, "--key", f"{key}.json", *arguments, "--json"))


# ------------------------------------------------------------------ the whole way


def test_a_payment_goes_from_words_to_a_final_batch_and_back_into_credits(spchain: Spchain, client: NodeClient) -> None:
    contract = opened(spchain)
    funded(spchain, contract, "alice")
    sent = pay(spchain, contract, "--wait", "final", "--save", "payment.receipt")
    assert sent["status"] == "final"
    assert sent["results"] == [
        {"sequence": 0, "operation": {"pay": PAYMENT}, "is_done": True, "code": "", "result": 99_995}
    ]
    assert Path("payment.receipt").stat().st_mode & 0o777 == 0o600

    shown = answer(spchain("contract", "show", contract, "--account", "bob.json", "--json"))
    assert (shown["status"], shown["escrow_microcredit"], shown["takes_deposits"]) == ("open", 100_000, True)
    assert shown["parameters"] == {"largest_payment_microcredit": 1_000}
    assert shown["account"]["balance_microcredit"] == 5
    assert shown["account"]["owed_microcredit"] == 0
    assert shown["operator_address"] == OPERATOR.address.hex()
    assert [each["contract_id"] for each in answer(spchain("contract", "list", "--json"))] == [contract]

    send(spchain, contract, {"withdraw": {"amount_microcredit": 3}}, "--wait", "final", key="bob")
    before = client.account(BOB.address).balance_microcredit
    claimed = answer(spchain("contract", "claim", contract, "--key", "alice.json", "--account", "bob.json", "--json"))
    assert claimed["amount_microcredit"] == 3
    assert client.account(BOB.address).balance_microcredit == before + 3
    refused(spchain("contract", "claim", contract, "--key", "bob.json"), 5, "owes account", "once it has ended")


def test_several_operations_go_in_one_request_in_their_order_and_refused_ones_say_why(spchain: Spchain) -> None:
    contract = opened(spchain)
    funded(spchain, contract, "alice", amount=10)
    payments = [{"pay": {**PAYMENT, "amount_microcredit": amount}} for amount in (7, 7, 3)]
    Path("payments.json").write_text(json.dumps(payments))
    result = spchain("contract", "send", contract, "@payments.json", "--key", "alice.json", "--json")
    sent = answer(result)
    assert [(item["sequence"], item["code"]) for item in sent["results"]] == [
        (0, ""),
        (1, "insufficient_balance"),
        (2, ""),
    ]
    human = spchain("contract", "send", contract, json.dumps(payments[0]), "--key", "alice.json")
    assert "refused: insufficient_balance" in human.stdout
    assert "rests on" in human.stdout
    assert pay(spchain, contract)["first_sequence"] == 4


def test_a_status_says_how_far_an_operation_is_and_what_that_rests_on(spchain: Spchain) -> None:
    contract = opened(spchain)
    funded(spchain, contract, "alice")
    pay(spchain, contract, "--save", "payment.receipt")
    status = answer(spchain("contract", "status", contract, "alice.json", "0", "--wait", "committed", "--json"))
    assert status["status"] in ("committed", "final")
    assert status["final_height"] == status["height"] + RULES.window_microblocks
    by_receipt = answer(
        spchain("contract", "status", contract, "--receipt", "payment.receipt", "--wait", "final", "--json")
    )
    assert (by_receipt["status"], by_receipt["batch"]) == ("final", status["batch"])
    assert by_receipt["rests_on"] == "the chain alone: the window for challenges has passed"
    refused(spchain("contract", "status", contract, "alice.json", "7"), 5, "no operation 7")
    refused(spchain("contract", "status", contract), 3, "by SENDER and NUMBER, or by --receipt")
    rows = answer(spchain("contract", "batches", contract, "--json"))
    assert [row["number"] for row in rows] == list(range(len(rows)))
    assert rows[status["batch"]]["status"] == "final"
    assert "FINAL AT" in spchain("contract", "batches", contract).stdout
    assert len(rows) > 1
    newest = spchain("contract", "batches", contract, "--limit", "1")
    assert newest.stdout.splitlines()[1].split()[0] == str(rows[-1]["number"])
    assert "--from" in newest.stderr
    first = answer(spchain("contract", "batches", contract, "--from", "0", "--limit", "1", "--json"))
    assert [row["number"] for row in first] == [0]


def test_what_an_operation_costs_is_shown_with_who_pays(spchain: Spchain) -> None:
    contract = opened(spchain)
    assert "not known before the first batch" in spchain("contract", "show", contract).stdout
    funded(spchain, contract, "alice")
    operations = [{"pay": PAYMENT}] * 50
    sent = send(spchain, contract, operations, "--wait", "committed")
    cost = sent["cost"]
    # 50 payments share one commitment; each as a transaction would pay the smallest fee and take some 200 bytes.
    assert cost["operations"] == 50
    assert cost["fee_microcredit"] == cost["onchain_fee_microcredit"] == 100
    assert 250 < cost["chain_bytes"] < 450
    assert cost["chain_bytes"] * 20 < 50 * sent["onchain_bytes"]
    assert abs(sent["onchain_bytes"] - cost["onchain_bytes"]) < 20
    assert cost["paid_by"] == OPERATOR.address.hex()
    shown = spchain("contract", "show", contract).stdout
    assert "microcredits and" in shown
    assert "the operator pays" in shown


# ------------------------------------------------------------------ words


def test_machines_say_how_their_operations_are_written(spchain: Spchain) -> None:
    docs = {doc["name"]: doc for doc in answer(spchain("contract", "machines", "--json"))}
    assert set(docs) == {"access_log", "appointments", "micro_fees", "vital_signs"}
    fees = docs["micro_fees"]
    assert [operation["name"] for operation in fees["operations"]] == ["pay", "refund", "withdraw"]
    fields = {field["name"]: field for field in fees["operations"][0]["fields"]}
    assert fields["recipient"]["takes"] == "20 bytes as 40 hexadecimal digits"
    assert fields["amount_microcredit"]["meaning"] == "Amount in millionths of a credit."
    assert "balance:ACCOUNT" in fees["state_keys"]
    text = spchain("contract", "machines", "vital_signs").stdout
    assert 'operation {"measure": {…}}' in text
    assert "a list of 1 to 64" in text
    refused(spchain("contract", "machines", "roulette"), 3, "no machine 'roulette'", "micro_fees 1")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{", "operations are no JSON"),
        ("[]", "the list is empty"),
        ('{"pay": {}}', "pay.recipient is missing"),
        ('{"pay": {"recipient": "77", "amount_microcredit": 5, "reference": "77"}}', "pay.recipient is '77'"),
        ('{"deposit": {"account": "77"}}', "spchain contract fund"),
        ('[{"withdraw": {"amount_microcredit": 1}}, {"borrow": {}}]', "operation 1: no operation 'borrow'"),
        ('{"withdraw": {"amount_microcredit": true}}', "withdraw.amount_microcredit is true"),
        ("[" * 5_000, "operations are no JSON"),
        ("@nowhere.json", "nowhere.json"),
        (json.dumps([{"withdraw": {"amount_microcredit": 1}}] * 65), "1 to 64"),
    ],
)
def test_wrong_words_are_refused_by_name_before_anything_is_sent(spchain: Spchain, text: str, problem: str) -> None:
    contract = opened(spchain)
    refused(spchain("contract", "send", contract, text, "--key", "alice.json"), 3, problem)


def test_contracts_are_opened_with_sound_parameters_only(spchain: Spchain) -> None:
    for parameters, problem in (("{}", "parameters.largest_payment_microcredit is missing"), ("7", "parameters is 7")):
        result = spchain("contract", "open", "micro_fees", parameters, "--key", "operator.json")
        refused(result, 3, problem)
    least = '{"largest_payment_microcredit": 5}'
    result = spchain("contract", "open", "micro_fees", least, "--key", "operator.json", "--bond", "7", "--json")
    refused(result, 3, '"reason": "bond_too_small"')
    refused(spchain("contract", "show", "77" * 32), 5, "no contract")
    refused(spchain("contract", "show", "77"), 3, "64 hexadecimal digits")


# ------------------------------------------------------------------ an operator that fails its users


def test_what_an_operator_ignores_is_forced_on_it(spchain: Spchain, node: ContractNode) -> None:
    contract = opened(spchain)
    funded(spchain, contract, "alice")
    node.contracts.is_ignoring = True
    operation = json.dumps({"withdraw": {"amount_microcredit": 500}})
    words = ("contract", "send", contract, operation, "--key", "alice.json")
    refused(spchain(*words, "--timeout", "0"), 5, "--sequence")
    refused(spchain(*words, "--sequence", "0", "--json"), 3, '"reason": "operator_unreachable"')
    forced = answer(
        spchain("contract", "force", contract, operation, "--key", "alice.json", "--sequence", "0", "--json")
    )
    assert forced["height"] > 0
    node.contracts.is_ignoring = False
    status = answer(spchain("contract", "status", contract, "alice.json", "0", "--wait", "final", "--json"))
    assert status["status"] == "final"
    claimed = answer(spchain("contract", "claim", contract, "--key", "alice.json", "--json"))
    assert claimed["amount_microcredit"] == 500
    refused(spchain("contract", "force", contract, "--key", "alice.json"), 3, "either OPERATIONS or --receipt")


def test_a_contract_that_nobody_operates_is_frozen_and_everything_comes_back(
    spchain: Spchain, client: NodeClient
) -> None:
    parameters = '{"largest_payment_microcredit": 1000}'
    opening = spchain("contract", "open", "micro_fees", parameters, "--key", "carol.json", "--json")
    assert "only while a node runs with carol.json" in opening.stderr
    contract = answer(opening)["contract_id"]
    assert "not known: no batch is final yet" in spchain("contract", "show", contract, "--account", "bob.json").stdout
    before = client.account(ALICE.address).balance_microcredit
    answer(spchain("contract", "fund", contract, "70000", "--key", "alice.json", "--json"))
    shown = answer(spchain("contract", "show", contract, "--json"))
    assert "1 forced request waits" in shown["explanation"]
    identifier = bytes.fromhex(contract)
    freezable_ms = shown["freezable_ms"]
    told = datetime.fromtimestamp(freezable_ms / 1_000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    assert f"anyone may freeze it from {told} on" in shown["explanation"]
    assert told in spchain("contract", "show", contract).stdout
    until(lambda: client.block(client.status().height).timestamp_ms >= freezable_ms)
    answer(spchain("contract", "freeze", contract, "--key", "bob.json", "--json"))
    until(lambda: client.contracts.contract(identifier).is_settled)
    claimed = answer(spchain("contract", "claim", contract, "--key", "bob.json", "--account", "alice.json", "--json"))
    assert claimed["amount_microcredit"] == 70_000
    assert client.account(ALICE.address).balance_microcredit == before - 100
    bond = client.account(CAROL.address).balance_microcredit
    assert "paid the bond back" in spchain("contract", "claim", contract, "--key", "bob.json", "--bond").stdout
    assert client.account(CAROL.address).balance_microcredit == bond + RULES.minimum_bond_microcredit
    assert client.contracts.contract(identifier).explanation.endswith("nothing is left in it")


def test_an_operator_closes_after_all_that_it_promised_is_on_the_chain(
    spchain: Spchain, node: ContractNode, client: NodeClient
) -> None:
    contract = opened(spchain)
    funded(spchain, contract, "alice")
    pay(spchain, contract, amount_microcredit=400)
    refused(spchain("contract", "close", contract, "--key", "alice.json"), 3, "wrong_order")
    answer(spchain("contract", "close", contract, "--key", "operator.json", "--json"))
    shown = client.contracts.contract(bytes.fromhex(contract))
    assert (shown.status, shown.answered_count) == ("closed", 1)
    assert answer(spchain("contract", "status", contract, "alice.json", "0", "--json"))["status"] != "voided"
    operation = json.dumps({"pay": PAYMENT})
    for number in ((), ("--sequence", "1")):
        result = spchain("contract", "send", contract, operation, "--key", "alice.json", *number, "--json")
        refused(result, 3, '"reason": "contract_ended"')
    until(lambda: client.contracts.contract(bytes.fromhex(contract)).is_settled)
    paid = {
        name: answer(spchain("contract", "claim", contract, "--key", f"{name}.json", "--json"))["amount_microcredit"]
        for name in ("alice", "bob")
    }
    assert paid == {"alice": 99_600, "bob": 400}
    refused(spchain("contract", "claim", contract, "--key", "bob.json"), 5, "owes account")
    words = spchain("contract", "show", contract, "--account", "bob.json").stdout
    assert "400 microcredits at batch" in words
    assert "which were paid out" in words
    assert "none: the contract has ended" in words
    assert node.store.head().height > 0


def test_closing_at_once_goes_by_the_chain_alone(spchain: Spchain, client: NodeClient) -> None:
    contract = opened(spchain)
    refused(spchain("contract", "close", contract, "--key", "alice.json", "--at-once", "--json"), 3, "not_permitted")
    answer(spchain("contract", "close", contract, "--key", "operator.json", "--at-once", "--json"))
    assert client.contracts.contract(bytes.fromhex(contract)).status == "closed"


def test_an_operator_that_is_away_for_a_moment_is_asked_again_for_the_next_number(
    spchain: Spchain, node: ContractNode
) -> None:
    contract = opened(spchain)
    node.contracts.is_ignoring = True

    def come_back() -> None:
        node.contracts.is_ignoring = False

    timer = threading.Timer(1.0, come_back)
    timer.start()
    assert send(spchain, contract, {"withdraw": {"amount_microcredit": 1}})["first_sequence"] == 0
    timer.join()


def test_a_receipt_tells_how_far_an_operation_is_without_its_operator(spchain: Spchain, node: ContractNode) -> None:
    contract = opened(spchain)
    send(spchain, contract, {"withdraw": {"amount_microcredit": 1}}, "--save", "kept.receipt")
    node.contracts.is_ignoring = True
    words = ("contract", "status", contract, "--receipt", "kept.receipt")
    assert answer(spchain(*words, "--wait", "final", "--json"))["status"] == "final"


def test_what_fails_after_the_receipt_hides_no_outcome(spchain: Spchain, node: ContractNode) -> None:
    contract = opened(spchain)
    operation = json.dumps({"withdraw": {"amount_microcredit": 1}})
    words = ("contract", "send", contract, operation, "--key", "alice.json", "--json")
    # This node is the operator's own, and watches it not: whoever takes that for a failure sends, and pays, twice.
    guarded = spchain(*words, "--guard")
    assert answer(guarded)["first_sequence"] == 0
    assert "though the operations are done" in guarded.stderr
    node.commits = False
    late = spchain(*words, "--wait", "committed", "--timeout", "0")
    assert late.exit_code == 6
    assert "not committed, after 0 s" in late.stderr
    assert json.loads(late.stdout)["results"][0]["code"] == "insufficient_balance"
    unsaved = spchain(*words, "--save", "alice.json/kept.receipt")
    assert unsaved.exit_code == 3
    assert json.loads(unsaved.stdout)["first_sequence"] == 2


# ------------------------------------------------------------------ nodes and operators that lie


def other_signature(node: ContractNode, given: Answer) -> Answer:
    signed = sign_receipt(node.chain_id, ALICE.signing, given.signed.receipt)
    return msgspec.structs.replace(given, signed=signed)


def other_outcomes(_node: ContractNode, given: Answer) -> Answer:
    outcome = msgspec.structs.replace(given.outcomes[0], code="nothing_to_move")
    return msgspec.structs.replace(given, outcomes=(outcome,))


def other_request(node: ContractNode, given: Answer) -> Answer:
    leaf = msgspec.structs.replace(given.signed.receipt.leaf, request_digest=bytes(32))
    receipt = msgspec.structs.replace(given.signed.receipt, leaf=leaf)
    return msgspec.structs.replace(given, signed=sign_receipt(node.chain_id, OPERATOR.signing, receipt))


def other_contract(node: ContractNode, given: Answer) -> Answer:
    receipt = msgspec.structs.replace(given.signed.receipt, contract_id=bytes(32))
    return msgspec.structs.replace(given, signed=sign_receipt(node.chain_id, OPERATOR.signing, receipt))


@pytest.mark.parametrize(
    ("lie", "problem"),
    [
        (other_signature, "not signed by operator"),
        (other_outcomes, "about other outcomes"),
        (other_request, "about another request"),
        (other_contract, "about contract 0000"),
    ],
)
def test_a_receipt_that_does_not_hold_is_found_out(
    spchain: Spchain, node: ContractNode, lie: Callable[[ContractNode, Answer], Answer], problem: str
) -> None:
    contract = opened(spchain)

    def lying(outcome: SendOutcome) -> SendOutcome:
        assert outcome.answer is not None
        return msgspec.structs.replace(outcome, answer=lie(node, outcome.answer))

    node.contracts.lie = lying
    operation = json.dumps({"withdraw": {"amount_microcredit": 1}})
    result = spchain("contract", "send", contract, operation, "--key", "alice.json", "--save", "kept.receipt")
    refused(result, 3, problem)
    assert not Path("kept.receipt").exists()


def test_a_receipt_is_not_written_over_another_file(spchain: Spchain, client: NodeClient) -> None:
    contract = opened(spchain)
    Path("kept.receipt").write_text("mine")
    operation = json.dumps({"withdraw": {"amount_microcredit": 1}})
    result = spchain("contract", "send", contract, operation, "--key", "alice.json", "--save", "kept.receipt")
    refused(result, 3, "is there already")
    assert client.contracts.account(bytes.fromhex(contract), ALICE.address).next_sequence == 0
    result = spchain("contract", "status", contract, "--receipt", "kept.receipt")
    refused(result, 3, "receipt file")


def test_an_operator_that_is_busy_says_when_to_come_back(spchain: Spchain, node: ContractNode) -> None:
    contract = opened(spchain)
    node.contracts.lie = lambda _outcome: SendOutcome(
        accepted=False, reason="busy", detail="8 batches wait for the chain", retry_ms=1_500
    )
    operation = json.dumps({"withdraw": {"amount_microcredit": 1}})
    send_it = ("contract", "send", contract, operation, "--key", "alice.json", "--json")
    refused(spchain(*send_it, "--timeout", "0"), 4, '"reason": "busy"', "again in 2 s", "--sequence 0", "count once")
    # It is sent again by itself as long as it has time.
    busy = node.contracts.lie
    calls: list[SendOutcome] = []

    def busy_at_first(outcome: SendOutcome) -> SendOutcome:
        calls.append(outcome)
        return busy(outcome) if len(calls) < 3 else outcome

    node.contracts.lie = busy_at_first
    assert answer(spchain(*send_it))["first_sequence"] == 1
    # What had been executed the first time got its receipt then; the same words with its number get the same receipt.
    assert len({outcome.answer.signed for outcome in calls if outcome.answer}) == 1
    again = answer(spchain(*send_it, "--sequence", "0"))
    assert (again["first_sequence"], again["batch"], again["index"]) == (0, 0, 0)
    assert account(spchain, contract)["next_sequence"] == 2
