# SPDX-License-Identifier: GPL-3.0-or-later
"""The part of a node's API about off-chain contracts."""

from collections.abc import Iterator, Sequence

import msgspec

from node.api import contract_models as answers
from node.http_client import BINARY, MSGPACK, HttpClient

_OPERATOR_TIMEOUT_S = 20.0
"""The node waits up to ten seconds for an operator at another node."""


class ContractClient:
    """Asks one node, over the connection of a `NodeClient`."""

    def __init__(self, http: HttpClient) -> None:
        self._http = http

    def contracts(self) -> Iterator[answers.Contract]:
        """Yield all contracts, page by page."""
        start = ""
        while True:
            page = self._http.read(answers.Contracts, "/v1/contracts", {"start": start, "limit": answers.MAX_BATCHES})
            yield from page.contracts
            if page.next_start is None:
                return
            start = page.next_start.hex()

    def contract(self, contract_id: bytes) -> answers.Contract:
        """Return a contract."""
        return self._http.read(answers.Contract, _path(contract_id))

    def cost(self, contract_id: bytes) -> answers.Cost:
        """Return what operations cost, by the newest batches."""
        return self._http.read(answers.ContractCost, f"{_path(contract_id)}/cost").cost

    def batches(self, contract_id: bytes, start: int = 0) -> Iterator[answers.ContractBatch]:
        """Yield committed batches from a number on, page by page."""
        position: int | None = start
        while position is not None:
            query = {"start": position, "limit": answers.MAX_BATCHES}
            page = self._http.read(answers.ContractBatches, f"{_path(contract_id)}/batches", query)
            yield from page.batches
            position = page.next_start

    def batch(self, contract_id: bytes, number: int) -> answers.ContractBatch:
        """Return a committed batch."""
        return self._http.read(answers.ContractBatch, f"{_path(contract_id)}/batches/{number}")

    def forced(self, contract_id: bytes) -> Iterator[answers.ForcedRequest]:
        """Yield what was forced on a contract, as far as the chain still knows it, page by page."""
        position: int | None = 0
        while position is not None:
            query = {"start": position, "limit": answers.MAX_BATCHES}
            page = self._http.read(answers.ForcedRequests, f"{_path(contract_id)}/forced", query)
            yield from page.requests
            position = page.next_start

    def account(self, contract_id: bytes, address: bytes, *, credits_wanted: bool = False) -> answers.ContractAccount:
        """Return an account inside a contract; what it holds there only when wanted, for that costs the node more."""
        query = {"credits": "true" if credits_wanted else "false"}
        return self._http.read(answers.ContractAccount, f"{_path(contract_id)}/accounts/{address.hex()}", query)

    def status(self, contract_id: bytes, sender: bytes, sequence: int) -> answers.RequestStatus:
        """Return how far a request has come."""
        path = f"{_path(contract_id)}/requests/{sender.hex()}/{sequence}"
        return self._http.read(answers.RequestStatus, path)

    def data(self, contract_id: bytes, number: int) -> bytes:
        """Return the published data of a batch; the caller checks it."""
        return self._http.repeat("GET", f"{_path(contract_id)}/batches/{number}/data")

    def states(self, contract_id: bytes) -> tuple[answers.ContractState, ...]:
        """Return which states of a contract the node keeps, the oldest first."""
        return self._http.read(answers.ContractStates, f"{_path(contract_id)}/states").states

    def state_page(self, contract_id: bytes, number: int, page: int) -> bytes:
        """Return a page of a state; the caller checks it."""
        return self._http.repeat("GET", f"{_path(contract_id)}/states/{number}/pages/{page}")

    def request_proof(self, contract_id: bytes, number: int, index: int) -> answers.RequestProof:
        """Return a request of a batch with its proof; the caller checks it."""
        return self._http.read(answers.RequestProof, f"{_path(contract_id)}/batches/{number}/requests/{index}/proof")

    def value_proof(self, contract_id: bytes, number: int, key: bytes) -> answers.ValueProof:
        """Return a state key at the end of a batch with its proof; the caller checks it."""
        return self._http.read(answers.ValueProof, f"{_path(contract_id)}/batches/{number}/state/{key.hex()}")

    def watch(self, contract_id: bytes) -> answers.ContractWatch:
        """Return how the node watches a contract's operator."""
        return self._http.read(answers.ContractWatch, f"{_path(contract_id)}/watch")

    def hold_receipt(self, contract_id: bytes, receipt: bytes) -> answers.ReceiptHeld:
        """Have the node's watcher hold a signed receipt against its operator."""
        raw = self._http.send("POST", f"{_path(contract_id)}/receipts", content=receipt, headers=BINARY)
        return self._http.parse(answers.ReceiptHeld, raw)

    def close(self, contract_id: bytes, order: bytes, wait_ms: int) -> answers.Closing:
        """Have the operator's node close a contract; `order` is a signed transaction that would."""
        raw = self._http.send(
            "POST",
            f"{_path(contract_id)}/close",
            content=order,
            headers=BINARY,
            params={"wait_ms": wait_ms},
            timeout_s=_OPERATOR_TIMEOUT_S + wait_ms / 1000,
        )
        return self._http.parse(answers.Closing, raw)

    def send(self, contract_id: bytes, raws: Sequence[bytes]) -> tuple[answers.RequestOutcome, ...]:
        """Bring requests to the operator, once; one outcome each. Safe to repeat: a request counts once, and its receipt stays the same."""
        raw = self._http.send(
            "POST",
            f"{_path(contract_id)}/requests",
            content=msgspec.msgpack.encode(list(raws)),
            headers=MSGPACK,
            timeout_s=_OPERATOR_TIMEOUT_S,
        )
        return self._http.parse(answers.RequestOutcomes, raw).outcomes


def _path(contract_id: bytes) -> str:
    return f"/v1/contracts/{contract_id.hex()}"
