# SPDX-License-Identifier: GPL-3.0-or-later
"""`spchain contract proof` and `spchain verify`: evidence about contracts from nodes that are honest, silent, or lie."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
from typer.testing import Result

from contracts.batch_data import open_data, prove_leaf
from contracts.operator import Answer
from ledger.codec import encode
from ledger.contract_state import CommittedBatch, contract_key
from ledger.errors import NotFound
from ledger.offchain import BatchCommitment, sign_receipt
from ledger.partial_tree import WitnessEntry
from ledger.state import CONTRACT_BATCHES, State
from ledger.testing import key
from node.client import NodeClient
from node.contract_requests import KeptAnswer
from node.offchain.contract_proofs import ProvedRequest
from node.offchain.statuses import RequestStatus, SendOutcome, status_at
from tests.node.api_kit import LoneNode, NoContracts, config_for, serving
from tests.node.care_cli import answer, refused, run
from tests.records.contract_evidence_kit import CONTRACT, OPERATOR, Contract, settled
from tests.records.evidence_kit import CHAIN, GENESIS, OTHER, PATIENT, Network, hash_of


class Published(NoContracts):
    """What was published of one contract, and its operator, as far as the test lets them be there."""

    def __init__(self, contract: Contract) -> None:
        self.contract = contract
        self.answers = True
        """Whether the operator answers again what it has answered."""
        self.gone: set[int] = set()
        """Batches whose data nobody keeps."""
        self.lie: Callable[[Any], Any] = lambda given: given

    async def send(self, contract_id: bytes, raws: Sequence[bytes]) -> Sequence[SendOutcome]:
        if not self.answers:
            return await super().send(contract_id, raws)
        await trio.lowlevel.checkpoint()
        found = [next(entry for entry in self.contract.accepted if entry.request == raw) for raw in raws]
        return [SendOutcome(accepted=True, answer=self.lie(self.contract.operator.answer_of(entry))) for entry in found]

    async def status_of(self, contract_id: bytes, sender: bytes, sequence: int) -> RequestStatus | None:
        await trio.lowlevel.checkpoint()
        assert (contract_id, sender) == (CONTRACT, PATIENT.address)
        if sequence > 3:
            return None
        place = (1, 1, 2, 3)[sequence]
        entry = self.contract.accepted[place]
        window = GENESIS.parameters.contracts.window_microblocks
        row = self.row(entry.number)
        return status_at(entry.number, entry.index, None, row, height=row.height + window, window=window)

    def row(self, number: int) -> CommittedBatch:
        found = State(self.contract.network.store).get(CONTRACT_BATCHES, contract_key(CONTRACT, number))
        assert found is not None
        return found

    async def fetch_for_client(self, commitment: BatchCommitment) -> bytes:
        await trio.lowlevel.checkpoint()
        if commitment.number in self.gone:
            raise NotFound(f"data {commitment.data_digest.hex()} is not here")
        return self.contract.batches[commitment.number].data

    async def prove_request(self, contract_id: bytes, number: int, index: int) -> ProvedRequest:
        data = open_data(self.row(number).commitment, await self.fetch_for_client(self.row(number).commitment))
        return ProvedRequest(data.items[index].request, prove_leaf(data, index))

    async def prove_key(self, contract_id: bytes, number: int, key: bytes) -> WitnessEntry:
        await trio.lowlevel.checkpoint()
        found: WitnessEntry = self.lie(self.contract.states[number].witness([key])[0])
        return found


@pytest.fixture
def published() -> Published:
    return Published(settled(Network()))


@pytest.fixture(autouse=True)
def url(published: Published, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    node = LoneNode(GENESIS)
    node.store = published.contract.network.store  # type: ignore[assignment] # a memory store, as the kit makes it
    node.offchain = published
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SPCHAIN_DEVNET", str(tmp_path / "no-devnet"))
    with serving(node, config_for(tmp_path / "node")) as served:
        monkeypatch.setenv("SPCHAIN_NODE", served)
        yield served


def export(*arguments: str) -> Result:
    return run("contract", "proof", CONTRACT.hex(), *arguments, "-o", "some.evidence", "--json")


def verified(published: Published) -> Any:  # noqa: ANN401 -- JSON
    """Verify the file that was written, with no node."""
    trusted = hash_of(published.contract.network.keyblocks[-1]).hex()
    return answer(run("verify", "some.evidence", "--keyblock", trusted, "--json"))


def test_an_operation_is_exported_with_its_outcome_and_verified_offline(published: Published) -> None:
    published.contract.network.settle()
    made = answer(export(PATIENT.address.hex(), "0"))
    found = verified(published)
    assert found["proven"] == made["proven"]
    assert found["claim"] == "operation"
    assert found["facts"]["outcomes"] == [{"code": "", "result": 4_993}, {"code": "", "result": 4_985}]
    trusted = hash_of(published.contract.network.keyblocks[-1]).hex()
    text = run("verify", "some.evidence", "--keyblock", trusted).stdout
    assert "which signed it" in text
    assert "not proven" in text
    refused(run("verify", "some.evidence", "--keyblock", "77" * 32), 3, "wrong_keyblock")
    refused(export(PATIENT.address.hex(), "0"), 3, "some.evidence")  # nothing is written over


def test_a_silent_operator_s_outcomes_are_executed_again_from_the_data(published: Published) -> None:
    published.contract.network.settle()
    published.answers = False
    answer(export(PATIENT.address.hex(), "2"))
    assert verified(published)["facts"]["outcomes"] == [{"code": "amount_too_large", "result": None}]


def test_when_the_data_is_gone_too_the_receipt_says_what_came_of_it(published: Published) -> None:
    contract = published.contract
    contract.network.settle()
    published.answers, published.gone = False, {0}
    refused(export(PATIENT.address.hex(), "3"), 5, "--receipt")
    entry = contract.accepted[3]
    given = contract.operator.answer_of(entry)
    kept = KeptAnswer("spchain-receipt", 1, CONTRACT, entry.request, given.signed, encode(given.outcomes))
    Path("kept.receipt").write_bytes(encode(kept))
    answer(export("--receipt", "kept.receipt"))
    assert verified(published)["facts"]["outcomes"] == [{"code": "", "result": 4_976}]
    # What stands in the receipt is checked like everything else.
    Path("false.receipt").write_bytes(encode(msgspec.structs.replace(kept, outcomes=encode(given.outcomes * 2))))
    Path("some.evidence").unlink()
    refused(export("--receipt", "false.receipt"), 3, "about other outcomes")


def test_an_operator_that_answers_otherwise_now_is_not_believed(published: Published) -> None:
    published.contract.network.settle()

    def better(given: Answer) -> Answer:
        outcomes = tuple(msgspec.structs.replace(outcome, code="") for outcome in given.outcomes)
        return msgspec.structs.replace(given, outcomes=outcomes)

    def resigned(given: Answer) -> Answer:
        receipt = given.signed.receipt
        leaf = msgspec.structs.replace(receipt.leaf, time_ms=receipt.leaf.time_ms + 1)
        signed = sign_receipt(CHAIN, key(OPERATOR), msgspec.structs.replace(receipt, leaf=leaf))
        return msgspec.structs.replace(given, signed=signed)

    for lie in (better, resigned):
        published.lie = lie
        answer(export(PATIENT.address.hex(), "2"))
        assert verified(published)["facts"]["outcomes"] == [{"code": "amount_too_large", "result": None}]
        Path("some.evidence").unlink()


def test_a_value_is_exported_by_its_name(published: Published) -> None:
    published.contract.network.settle()
    answer(export("--state", f"balance:{OTHER.address.hex()}"))
    found = verified(published)
    assert (found["facts"]["name"], found["facts"]["value"]) == (f"balance:{OTHER.address.hex()}", 24)
    Path("some.evidence").unlink()
    answer(export("--state", f"balance:{OTHER.address.hex()}", "--batch", "0"))
    assert verified(published)["facts"]["value"] == 15


def test_of_the_final_batches_the_newest_that_the_keyblock_proves_is_taken(published: Published) -> None:
    contract, value = published.contract, f"balance:{OTHER.address.hex()}"
    contract.network.pin()
    refused(export("--state", value), 3, "no batch of the contract is final at the newest keyblock yet")
    contract.network.pin()
    contract.pay(3)
    contract.commit()
    contract.wait()
    # Who waits gets the newest final one, once a keyblock proves it.
    refused(export("--state", value, "--wait", "0.1"), 3, "does not count: there are 2 that do")
    answer(export("--state", value))
    assert verified(published)["facts"]["value"] == 24
    Path("some.evidence").unlink()
    contract.network.settle()
    answer(export("--state", value))
    assert verified(published)["facts"]["value"] == 27


def test_a_node_that_lies_about_a_value_is_found_out(published: Published) -> None:
    published.contract.network.settle()

    def richer(entry: WitnessEntry) -> WitnessEntry:
        return msgspec.structs.replace(entry, value=encode(9_999))

    def elsewhere(entry: WitnessEntry) -> WitnessEntry:
        return msgspec.structs.replace(entry, key=b"mx")

    for lie in (richer, elsewhere):
        published.lie = lie
        refused(export("--state", f"balance:{OTHER.address.hex()}"), 3, "does not hold")
    assert not Path("some.evidence").exists()


def test_what_is_not_final_at_the_keyblock_has_to_wait(published: Published, url: str) -> None:
    contract = published.contract
    contract.pay(3)
    contract.commit()
    contract.network.settle()
    with NodeClient(url) as client:
        assert client.contracts.batch(CONTRACT, 2).status == "pending"
    result = export("--state", f"balance:{OTHER.address.hex()}", "--batch", "2")
    refused(result, 3, "pending")
    assert json.loads(result.stderr.splitlines()[-1])["reason"] == "pending"
