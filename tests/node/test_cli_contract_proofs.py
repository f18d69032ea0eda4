# SPDX-License-Identifier: GPL-3.0-or-later
"""`spchain contract challenge` and `proof`: operators that lie are found by their published data, and what is final is proved."""

import json
from pathlib import Path

import msgspec
import pytest
from structlog.testing import capture_logs

from contracts.machines.micro_fees import MicroFeesParameters, Pay
from contracts.operator import Batch, Operator, Start
from contracts.requests import sign_request
from contracts.shipped import MACHINES
from ledger.codec import encode
from ledger.contract_bodies import CommitBatch, FundContract, OpenContract
from ledger.contract_state import contract_id_of
from ledger.errors import InvalidInput
from ledger.offchain import ContractTerms, SignedReceipt, deposit_request
from ledger.testing import key
from node.actions import Actor
from node.api import contract_models as models
from node.client import NodeClient
from node.contract_client import ContractClient
from node.contract_proving import operation_claim, search
from node.contract_requests import KeptAnswer
from node.http_client import ApiError
from tests.contracts.kit import rebuilt
from tests.node.api_kit import config_for, serving
from tests.node.care_cli import answer, refused
from tests.node.contract_cli import Spchain, client, funded, node, opened, pay, spchain, until
from tests.node.contract_kit import ALICE, BOB, CAROL, ContractNode

__all__ = ["client", "node", "spchain"]

REFERENCE = b"\x77" * 32


class Liar:
    """Carol, who operates a contract by hand and publishes what she likes."""

    def __init__(self, node: ContractNode, client: NodeClient) -> None:
        self.node, self.client = node, client
        self.actor = Actor(client, CAROL)
        parameters = encode(MicroFeesParameters(1_000))
        self.actor.commit(OpenContract(0, "micro_fees", 1, parameters, 10_000))
        self.contract_id = contract_id_of(CAROL.signing.public_key, 0)
        terms = ContractTerms(self.contract_id, "micro_fees", 1, parameters, CAROL.signing.public_key)
        self.now_ms = client.contracts.contract(self.contract_id).until_ms
        start = Start(time_ms=self.now_ms)
        self.operator = Operator(node.chain_id, terms, CAROL.signing, MACHINES, start=start)
        self.receipts: list[SignedReceipt] = []
        self.requests: list[bytes] = []
        Actor(client, ALICE).commit(FundContract(self.contract_id, ALICE.address, 5_000))
        self.operator.accept(
            deposit_request(self.contract_id, 0, ALICE.address, 5_000), self.now_ms + 1, is_forced=True
        )
        self.paid = 0

    def pay(self, count: int = 3) -> None:
        """Take payments of Alice to Bob."""
        for _ in range(count):
            raw = sign_request(
                self.node.chain_id, ALICE.signing, self.contract_id, self.paid, [Pay(BOB.address, 5, REFERENCE)]
            )
            self.operator.accept(raw, self.now_ms + 2)
            self.requests.append(raw)
            self.paid += 1

    def cut(self) -> Batch:
        """Return the honest batch of what was taken."""
        self.operator.cut(self.now_ms + 3)
        released = self.operator.durable(self.operator.appended)
        self.receipts += [given.signed for _, given in released.answers]
        return released.batches[-1]

    def publish(self, batch: Batch) -> None:
        """Publish and commit a batch."""
        self.node.contracts.data.put(batch.commitment.data_digest, batch.data)
        self.actor.commit(CommitBatch(batch.commitment))

    def kept(self, number: int) -> KeptAnswer:
        """Return the receipt of a payment as a user keeps it."""
        signed = self.receipts[1 + number]
        answered = self.operator.accept(self.requests[number], self.now_ms).answer
        assert answered is not None
        return KeptAnswer(
            "spchain-receipt", 1, self.contract_id, self.requests[number], signed, encode(answered.outcomes)
        )


@pytest.fixture
def liar(node: ContractNode, client: NodeClient) -> Liar:
    return Liar(node, client)


def forged(batch: Batch) -> Batch:
    """Return a batch in which the operator has given a request another root."""

    def change(items: list) -> list:  # type: ignore[type-arg] # items of the kit
        items[2] = msgspec.structs.replace(items[2], root=REFERENCE)
        return items

    return rebuilt(batch, change)


# ------------------------------------------------------------------ challenge


def test_nothing_wrong_is_found_with_an_honest_operator(spchain: Spchain, client: NodeClient, liar: Liar) -> None:
    contract = liar.contract_id.hex()
    found = answer(spchain("contract", "challenge", contract, "--key", "bob.json", "--json"))
    assert found == {"is_wrong": False, "first_batch": 0, "batches": 0}
    liar.pay()
    batch = liar.cut()
    Path("kept.receipt").write_bytes(encode(liar.kept(1)))
    early = spchain("contract", "challenge", contract, "--key", "bob.json", "--receipt", "kept.receipt")
    assert "the receipt is about batch 0, which does not count" in early.stderr
    liar.publish(batch)
    before = client.account(BOB.address)
    result = spchain("contract", "challenge", contract, "--key", "bob.json", "--receipt", "kept.receipt")
    assert result.stdout == "nothing wrong found in 1 batches\n"
    assert client.account(BOB.address) == before


def test_a_forged_batch_is_proved_wrong_and_pays_who_found_it(spchain: Spchain, client: NodeClient, liar: Liar) -> None:
    contract = liar.contract_id.hex()
    liar.pay()
    liar.publish(liar.cut())
    liar.pay()
    batch = liar.cut()
    liar.node.is_still = True  # the window must not pass while this test works
    liar.publish(forged(batch))
    before = client.account(BOB.address).balance_microcredit
    found = answer(spchain("contract", "challenge", contract, "--key", "bob.json", "--json"))
    assert (found["is_wrong"], found["batch"], found["kind"]) == (True, 1, "WrongExecution")
    shown = client.contracts.contract(liar.contract_id)
    assert (shown.status, shown.bond_microcredit) == ("frozen", 0)
    assert client.account(BOB.address).balance_microcredit == before + 5_000 - 100


def test_a_challenge_in_full_length_is_brought_and_shown(spchain: Spchain, client: NodeClient, liar: Liar) -> None:
    payments = [Pay(key(number).address, 1, REFERENCE) for number in range(60)]
    raw = sign_request(liar.node.chain_id, ALICE.signing, liar.contract_id, 0, payments)
    for _ in range(2):
        liar.operator.accept(raw, liar.now_ms + 2)
    liar.paid += 60
    liar.pay()

    def change(items: list) -> list:  # type: ignore[type-arg] # items of the kit
        items[1] = msgspec.structs.replace(items[1], root=REFERENCE)
        return items

    liar.node.is_still = True
    liar.publish(rebuilt(liar.cut(), change))
    found = answer(spchain("contract", "challenge", liar.contract_id.hex(), "--key", "bob.json", "--json"))
    assert found["kind"] == "WrongExecution"
    shown = answer(spchain("tx", "show", found["id"], "--json"))
    assert shown["kind"] == "challenge_batch"
    assert len(bytes.fromhex(shown["raw"])) > 16 * 1024


def test_a_receipt_convicts_an_operator_whose_batch_has_another_leaf(
    spchain: Spchain, client: NodeClient, liar: Liar
) -> None:
    liar.pay()
    batch = liar.cut()

    def dropped(items: list) -> list:  # type: ignore[type-arg] # items of the kit
        del items[3]
        return items

    liar.node.is_still = True
    liar.publish(rebuilt(batch, dropped))
    contract = liar.contract_id.hex()
    # Whoever has no receipt sees an honest batch: what was dropped leaves no trace in it.
    assert not answer(spchain("contract", "challenge", contract, "--key", "bob.json", "--json"))["is_wrong"]
    Path("kept.receipt").write_bytes(encode(liar.kept(2)))
    result = spchain("contract", "challenge", contract, "--key", "alice.json", "--receipt", "kept.receipt", "--json")
    assert answer(result)["kind"] == "BrokenReceipt"
    assert client.contracts.contract(liar.contract_id).status == "frozen"


def test_a_receipt_that_the_operator_has_not_signed_accuses_nobody(spchain: Spchain, liar: Liar) -> None:
    liar.pay()
    liar.publish(liar.cut())
    kept = liar.kept(0)
    false = msgspec.structs.replace(kept.signed, signature=liar.receipts[2].signature)
    Path("false.receipt").write_bytes(encode(msgspec.structs.replace(kept, signed=false)))
    contract = liar.contract_id.hex()
    result = spchain("contract", "challenge", contract, "--key", "bob.json", "--receipt", "false.receipt")
    refused(result, 3, "not signed by operator")
    Path("rubbish.receipt").write_bytes(b"\xc1" * 100)
    result = spchain("contract", "challenge", contract, "--key", "bob.json", "--receipt", "rubbish.receipt")
    refused(result, 3, "receipt file")


def test_what_is_wrong_and_final_cannot_be_challenged_any_more(
    spchain: Spchain, client: NodeClient, liar: Liar
) -> None:
    liar.pay()
    liar.publish(forged(liar.cut()))
    while client.contracts.batch(liar.contract_id, 0).status != "final":
        pass
    result = spchain("contract", "challenge", liar.contract_id.hex(), "--key", "bob.json")
    refused(result, 3, "too late to challenge it")


def test_without_published_data_nobody_judges(spchain: Spchain, liar: Liar) -> None:
    liar.pay()
    batch = liar.cut()
    liar.publish(batch)
    liar.node.contracts.data.remove([batch.commitment.data_digest])
    result = spchain("contract", "challenge", liar.contract_id.hex(), "--key", "bob.json")
    refused(result, 5, "no node keeps the data of batch 0")


# ------------------------------------------------------------------ from a state that the node keeps


def aged(liar: Liar) -> Start:
    """Let three batches become final, of which the data of the last is left; returns the state before that one."""
    before = None
    for number in range(3):
        if number == 2:
            before = tuple(liar.operator.state.entries())
        liar.pay()
        batch = liar.cut()
        liar.publish(batch)
        if number < 2:
            liar.node.contracts.data.remove([batch.commitment.data_digest])
    until(lambda: liar.client.contracts.contract(liar.contract_id).final_count == 3)
    assert before is not None
    return Start(2, liar.client.contracts.batch(liar.contract_id, 1).until_ms, before)


def test_batches_whose_data_is_gone_are_judged_from_a_state_that_the_node_keeps(
    spchain: Spchain, client: NodeClient, liar: Liar
) -> None:
    contract, start = liar.contract_id.hex(), aged(liar)
    refused(spchain("contract", "challenge", contract, "--key", "bob.json"), 5, "no node keeps the data of batch 0")
    liar.node.snapshots.put(liar.contract_id, start)
    result = spchain("contract", "challenge", contract, "--key", "bob.json")
    assert result.stdout == "nothing wrong found in 1 batches from batch 2 on; those before are final\n"
    liar.pay()
    batch = liar.cut()
    liar.node.is_still = True
    liar.publish(forged(batch))
    # What comes after a batch that is not final is nobody's word but the operator's.
    after = Start(4, batch.commitment.until_ms, tuple(liar.operator.state.entries()))
    liar.node.snapshots.put(liar.contract_id, after)
    found = answer(spchain("contract", "challenge", contract, "--key", "bob.json", "--json"))
    assert (found["is_wrong"], found["batch"], found["kind"]) == (True, 3, "WrongExecution")
    assert client.contracts.contract(liar.contract_id).status == "frozen"


def test_a_state_that_is_not_the_chain_s_is_found_out(spchain: Spchain, liar: Liar) -> None:
    start = aged(liar)
    (key, _), *others = start.entries
    liar.node.snapshots.put(liar.contract_id, Start(2, start.time_ms, ((key, b"\x00"), *others)))
    refused(spchain("contract", "challenge", liar.contract_id.hex(), "--key", "bob.json"), 3, "another root")


def test_a_node_cannot_keep_anybody_busy_with_empty_pages(
    client: NodeClient, liar: Liar, monkeypatch: pytest.MonkeyPatch
) -> None:
    aged(liar)
    endless = (models.ContractState(number=2, pages=2**40, entries=1, size_bytes=100),)
    monkeypatch.setattr(ContractClient, "states", lambda *_: endless)
    monkeypatch.setattr(ContractClient, "state_page", lambda *_: b"")
    with pytest.raises(InvalidInput, match="in 1099511627776 pages"):
        search(client, liar.node.chain_id, client.contracts.contract(liar.contract_id))


def test_outcomes_are_executed_again_from_a_state_that_the_node_keeps(client: NodeClient, liar: Liar) -> None:
    liar.node.snapshots.put(liar.contract_id, aged(liar))
    contract = client.contracts.contract(liar.contract_id)
    claim = operation_claim(client, liar.node.chain_id, contract, 2, 1)
    assert claim.outcomes == liar.kept(7).outcomes


# ------------------------------------------------------------------ receipts


def test_by_a_receipt_the_status_needs_no_word_of_the_operator(
    spchain: Spchain, node: ContractNode, client: NodeClient
) -> None:
    contract = opened(spchain)
    funded(spchain, contract, "alice")
    pay(spchain, contract, "--wait", "final", "--save", "kept.receipt")
    node.contracts.is_ignoring = True
    refused(spchain("contract", "status", contract, "alice.json", "0", "--json"), 4, "operator_unreachable")
    known = answer(spchain("contract", "status", contract, "--receipt", "kept.receipt", "--json"))
    assert (known["status"], known["sequence"]) == ("final", 0)
    assert known["final_height"] <= client.status().height


def test_a_status_by_receipt_shows_that_the_batch_breaks_it(spchain: Spchain, liar: Liar) -> None:
    liar.pay()
    batch = liar.cut()
    contract = liar.contract_id.hex()
    Path("kept.receipt").write_bytes(encode(liar.kept(2)))
    promised = answer(spchain("contract", "status", contract, "--receipt", "kept.receipt", "--json"))
    assert (promised["status"], promised["height"]) == ("included", None)

    def dropped(items: list) -> list:  # type: ignore[type-arg] # items of the kit
        return items[:3]

    liar.publish(rebuilt(batch, dropped))
    refused(spchain("contract", "status", contract, "--receipt", "kept.receipt"), 3, "does not hold what the receipt")


def test_a_receipt_given_to_the_watcher_is_held_against_the_operator(tmp_path: Path) -> None:
    (tmp_path / "node").mkdir()
    with (
        ContractNode(tmp_path / "node", watches=True) as node,
        capture_logs(),
        serving(node, config_for(tmp_path / "data"), beside=node.run) as url,
        NodeClient(url) as client,
    ):
        liar = Liar(node, client)
        liar.pay()
        batch = liar.cut()
        held = client.contracts.hold_receipt(liar.contract_id, encode(liar.receipts[3]))
        assert (held.batch, held.index) == (0, 3)
        with pytest.raises(ApiError, match="signed"):
            client.contracts.hold_receipt(
                liar.contract_id, encode(msgspec.structs.replace(liar.receipts[2], signature=bytes(64)))
            )
        with pytest.raises(ApiError, match="receipt"):
            client.contracts.hold_receipt(liar.contract_id, b"rubbish")
        until(lambda: client.contracts.watch(liar.contract_id).is_watched)

        def dropped(items: list) -> list:  # type: ignore[type-arg] # items of the kit
            return items[:3]

        liar.publish(rebuilt(batch, dropped))
        until(lambda: client.contracts.contract(liar.contract_id).status == "frozen")
        until(lambda: bool(client.contracts.watch(liar.contract_id).fault))
        assert "a receipt promises place 3 of a batch of 3" in client.contracts.watch(liar.contract_id).fault


# ------------------------------------------------------------------ proof


def test_a_proof_needs_a_committed_operation_and_a_keyblock(spchain: Spchain, node: ContractNode) -> None:
    contract = opened(spchain)
    funded(spchain, contract, "alice")
    pay(spchain, contract, "--wait", "final")
    # Nobody mines here: the claim is complete and checked, and waits for the first keyblock.
    result = spchain("contract", "proof", contract, "alice.json", "0", "-o", "payment.evidence")
    refused(result, 5, "no keyblock is pinned yet")
    result = spchain("contract", "proof", contract, "--state", "balance:" + BOB.address.hex(), "-o", "x.evidence")
    refused(result, 5, "no keyblock is pinned yet")
    refused(spchain("contract", "proof", contract, "--state", "wealth", "-o", "x"), 3, "balance:ACCOUNT", "sequence:")
    refused(spchain("contract", "proof", contract, "--state", "balance:7", "-o", "x"), 3, "not 40 hexadecimal digits")
    refused(spchain("contract", "proof", contract, "alice.json", "9", "-o", "x"), 5, "no operation 9")
    result = spchain("contract", "proof", contract, "--state", "slot:1", "--batch", "99", "-o", "x")
    refused(result, 3, "no state key")
    assert not list(Path().glob("*.evidence"))
    node.is_still = True
    json.dumps(pay(spchain, contract))
    result = spchain("contract", "proof", contract, "alice.json", "1", "-o", "x")
    assert result.exit_code in (3, 5)
