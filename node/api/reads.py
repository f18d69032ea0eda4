# SPDX-License-Identifier: GPL-3.0-or-later
"""Routes that read: status, genesis, state, blocks, transactions, accounts, institutions, patients, records.

Endpoints are coroutines that call the store directly: reads take microseconds, a hop to a thread a millisecond, and the store
wants one thread.
"""

from http import HTTPStatus
from typing import Annotated

import trio
from fastapi import APIRouter, Path, Query

from ledger.crypto.keys import ADDRESS_BYTES
from node.api import models, status_models, views
from node.api.bodies import parse_hex
from node.api.errors import Problem
from node.api.served import Served

_DIGEST_BYTES = 32
_MAX = 2**63 - 1
Start = Annotated[int, Query(ge=0, le=_MAX, description="First entry wanted.")]
Limit = Annotated[int, Query(ge=1, le=models.MAX_PAGE, description="Most entries wanted.")]


def chain_routes(node: Served) -> APIRouter:
    """Return the routes about the chain."""
    router = APIRouter(tags=["chain"])
    store = node.store

    @router.get("/v1/status")
    async def status() -> status_models.Status:
        """How the node is: height, committee, peers, load."""
        return status_models.Status.model_validate(node.status())

    @router.get("/healthz")
    async def health() -> status_models.Health:
        """Whether the node can serve and write; for load balancers."""
        storage = node.status().storage
        if storage != "ok":
            raise Problem(HTTPStatus.SERVICE_UNAVAILABLE, "storage", storage, "use another node")
        return status_models.Health(status="ok")

    @router.get("/v1/genesis")
    async def genesis() -> models.GenesisInfo:
        """The network's genesis, readable and as bytes."""
        return views.genesis_info(node.chain_id, node.genesis)

    @router.get("/v1/state")
    async def state(height: Annotated[int | None, Query(ge=0, le=_MAX)] = None) -> models.StateAt:
        """Digests of the agreed state: of the newest height with the root, of a past height the running digest."""
        return views.state_at(store, height)

    return router


def block_routes(node: Served) -> APIRouter:
    """Return the routes about microblocks and their transactions."""
    router = APIRouter(tags=["blocks"])
    store = node.store

    @router.get("/v1/blocks/{reference}")
    async def block(reference: str) -> models.Block:
        """A committed microblock, by height, hash or `latest`."""
        return views.block_at(store, views.height_of(store, reference))

    @router.get("/v1/blocks/{reference}/transactions")
    async def block_transactions(reference: str, start: Start = 0, limit: Limit = 100) -> models.BlockTransactions:
        """The transactions of a committed microblock, with what became of each."""
        height = views.height_of(store, reference)
        found: list[models.BlockTransaction] = []
        for first, batch in views.batches_at(store, height):
            for position in range(max(first, start), first + len(batch)):
                if len(found) == limit:
                    return models.BlockTransactions(height=height, transactions=tuple(found), next_start=position)
                found.append(views.listed(store, height, position, batch[position - first]))
            await trio.lowlevel.checkpoint()
        return models.BlockTransactions(height=height, transactions=tuple(found), next_start=None)

    @router.get("/v1/transactions/{identifier}")
    async def transaction(identifier: str) -> models.Transaction:
        """A transaction of a committed microblock."""
        return views.transaction_at(store, parse_hex(identifier, _DIGEST_BYTES, "transaction id"))

    return router


def account_routes(node: Served) -> APIRouter:
    """Return the routes about accounts, institutions, patients and records."""
    router = APIRouter(tags=["accounts"])
    store = node.store

    @router.get("/v1/accounts/{address}")
    async def account(address: str) -> models.Account:
        """An account: nonce, balance, roles. One that was never touched is empty."""
        key = parse_hex(address, ADDRESS_BYTES, "address")
        return views.account_at(store, key, node.next_nonce(key))

    @router.get("/v1/institutions")
    async def institutions(start: str = "", limit: Limit = 100) -> models.Institutions:
        """Registered institutions, in the order of their addresses."""
        first = parse_hex(start, ADDRESS_BYTES, "address") if start else b""
        return views.institutions_from(store, first, limit)

    @router.get("/v1/institutions/{address}")
    async def institution(address: str) -> models.Institution:
        """A registered institution."""
        return views.institution_at(store, parse_hex(address, ADDRESS_BYTES, "address"))

    @router.get("/v1/patients/{address}")
    async def patient(address: str) -> models.Patient:
        """A registered patient: keys, number of records, authorised institutions."""
        return views.patient_at(store, parse_hex(address, ADDRESS_BYTES, "address"))

    @router.get("/v1/patients/{address}/records")
    async def records(address: str, start: Start = 0, limit: Limit = 100) -> models.Records:
        """A patient's records, in the order of the patient's chain."""
        return views.records_from(store, parse_hex(address, ADDRESS_BYTES, "address"), start, limit)

    @router.get("/v1/patients/{address}/records/{sequence}")
    async def record(address: str, sequence: Annotated[int, Path(ge=0, le=_MAX)]) -> models.Record:
        """One record of a patient."""
        return views.record_at(store, parse_hex(address, ADDRESS_BYTES, "address"), sequence)

    return router
