# SPDX-License-Identifier: GPL-3.0-or-later
"""Routes that hand out what contracts are executed again from: the published data of batches, and states between them."""

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from contracts.shipped import MACHINES
from ledger.contract_state import Contract
from ledger.offchain import MAX_DATA_BYTES
from node.api import contract_models as models
from node.api.bodies import parse_hex
from node.api.contract_views import ContractViews
from node.api.contracts import Number
from node.api.guard import Budget
from node.api.served import Served
from node.offchain.contract_states import MAX_PAGE_BYTES

_DIGEST_BYTES = 32
_BINARY = "application/octet-stream"


def contract_data_routes(node: Served, budget: Budget) -> APIRouter:
    """Return the routes to data and states; what is being sent counts against the budget."""
    router = APIRouter(tags=["contracts"])
    shown = ContractViews(node.store, MACHINES)

    def of(identifier: str) -> Contract:
        return shown.contract(parse_hex(identifier, _DIGEST_BYTES, "contract"))

    @router.get(
        "/v1/contracts/{contract}/batches/{number}/data",
        response_class=Response,
        responses={200: {"content": {_BINARY: {}}}},
    )
    async def data(request: Request, contract: str, number: Number) -> Response:
        """The published data of a batch, from here or from another node, checked against the commitment."""
        commitment = shown.batch(of(contract), number).commitment
        # Held until the answer is sent: a slow reader keeps it in memory.
        budget.take(request, MAX_DATA_BYTES)
        return Response(await node.offchain.availability.fetch_for_client(commitment), media_type=_BINARY)

    @router.get("/v1/contracts/{contract}/states")
    async def states(contract: str) -> models.ContractStates:
        """The states at the end of some batches that this node's watcher keeps."""
        contract_id = of(contract).terms.contract_id
        kept = await node.offchain.watching.states(contract_id)
        return models.ContractStates(
            states=tuple(
                models.ContractState(number=one.number, pages=one.pages, entries=one.entries, size_bytes=one.size)
                for one in kept
            )
        )

    @router.get(
        "/v1/contracts/{contract}/states/{number}/pages/{page}",
        response_class=Response,
        responses={200: {"content": {_BINARY: {}}}},
    )
    async def state_page(request: Request, contract: str, number: Number, page: Number) -> Response:
        """A page of a kept state: entries of key and value in the order of their keys. Whoever takes it compares the root of all pages."""
        contract_id = of(contract).terms.contract_id
        budget.take(request, MAX_PAGE_BYTES)
        return Response(await node.offchain.watching.state_page(contract_id, number, page), media_type=_BINARY)

    return router
