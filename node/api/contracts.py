# SPDX-License-Identifier: GPL-3.0-or-later
"""Routes that read off-chain contracts: what the chain keeps of them, what they cost, and what proves it."""

from typing import Annotated

from fastapi import APIRouter, Path, Query

from contracts.shipped import MACHINES
from ledger.contract_state import Contract
from node.api import contract_models as models
from node.api.bodies import parse_hex
from node.api.contract_scan import Costs
from node.api.contract_views import ContractViews
from node.api.served import Served

_DIGEST_BYTES = 32
_MAX = 2**63 - 1
Number = Annotated[int, Path(ge=0, le=_MAX)]
Start = Annotated[int, Query(ge=0, le=_MAX, description="First entry wanted.")]
Limit = Annotated[int, Query(ge=1, le=models.MAX_BATCHES, description="Most entries wanted.")]


def contract_routes(node: Served) -> APIRouter:
    """Return the routes that read contracts."""
    router = APIRouter(tags=["contracts"])
    shown = ContractViews(node.store, MACHINES)
    costs = Costs(node.store)

    def of(identifier: str) -> Contract:
        return shown.contract(parse_hex(identifier, _DIGEST_BYTES, "contract"))

    @router.get("/v1/contracts")
    async def contracts(start: str = "", limit: Limit = models.MAX_BATCHES) -> models.Contracts:
        """All contracts, in the order of their identifiers."""
        return shown.page(parse_hex(start, _DIGEST_BYTES, "contract") if start else b"", limit)

    @router.get("/v1/contracts/{contract}")
    async def contract(contract: str) -> models.Contract:
        """A contract: machine and parameters, how it stands in words, bond, escrow, batches, what it has to answer for."""
        return shown.shown(of(contract))

    @router.get("/v1/contracts/{contract}/cost")
    async def cost(contract: str) -> models.ContractCost:
        """What operations cost off the chain, by the newest batches, and what they would cost on it."""
        return models.ContractCost(cost=costs.of_newest(of(contract)))

    @router.get("/v1/contracts/{contract}/batches")
    async def batches(contract: str, start: Start = 0, limit: Limit = models.MAX_BATCHES) -> models.ContractBatches:
        """Committed batches from a number on, each pending or final."""
        return shown.batches(of(contract), start, limit)

    @router.get("/v1/contracts/{contract}/batches/{number}")
    async def batch(contract: str, number: Number) -> models.ContractBatch:
        """One committed batch."""
        return shown.shown_batch(shown.batch(of(contract), number))

    @router.get("/v1/contracts/{contract}/forced")
    async def forced(contract: str, start: Start = 0, limit: Limit = models.MAX_BATCHES) -> models.ForcedRequests:
        """What was forced on the contract, deposits included, as far as the chain still knows it."""
        return shown.forced(of(contract), start, limit)

    return router
