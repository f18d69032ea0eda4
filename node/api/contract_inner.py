# SPDX-License-Identifier: GPL-3.0-or-later
"""Routes about what is inside contracts: accounts, how far requests have come, and proofs under a batch's roots."""

from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Path, Query
from starlette.requests import Request

from contracts.shipped import MACHINES
from ledger.codec import Uint, decoder, encode
from ledger.contract_queries import claimed_by
from ledger.contract_state import Contract
from ledger.crypto.keys import ADDRESS_BYTES
from ledger.errors import InvalidInput, NotFound
from ledger.offchain import MAX_BATCH_LEAVES
from ledger.partial_tree import MAX_KEY_BYTES
from node.api import contract_models as models
from node.api import views
from node.api.bodies import parse_hex
from node.api.contract_scan import Costs
from node.api.contract_views import ContractViews
from node.api.contracts import Number
from node.api.errors import Problem
from node.api.served import Served
from node.api.tokens import authorise

_DIGEST_BYTES = 32
_decode_amount = decoder(Uint, 16, name="amount")
Index = Annotated[int, Path(ge=0, lt=MAX_BATCH_LEAVES)]


def inner_routes(node: Served, token: bytes | None) -> APIRouter:
    """Return the routes about accounts, requests and proofs; with a token, what may take executing batches again must carry it."""
    router = APIRouter(tags=["contracts"])
    shown = ContractViews(node.store, MACHINES)
    costs = Costs(node.store)

    def of(identifier: str) -> Contract:
        return shown.contract(parse_hex(identifier, _DIGEST_BYTES, "contract"))

    @router.get("/v1/contracts/{contract}/accounts/{address}")
    async def account(
        request: Request,
        contract: str,
        address: str,
        credits_wanted: Annotated[
            bool,
            Query(
                alias="credits", description="Whether to read what it holds, which may take executing batches again."
            ),
        ] = False,
    ) -> models.ContractAccount:
        """An account inside a contract: the number of its next operation and, if wanted, its credits by the newest final batch."""
        if credits_wanted:
            authorise(request, token)
        found, key = of(contract), parse_hex(address, ADDRESS_BYTES, "address")
        return await _account(node, shown, found, key, with_credits=credits_wanted)

    @router.get("/v1/contracts/{contract}/requests/{sender}/{sequence}")
    async def status(contract: str, sender: str, sequence: Number) -> models.RequestStatus:
        """How far the request has come that holds an operation of a sender, and what that rests on."""
        return await _status(node, shown, costs, of(contract), parse_hex(sender, ADDRESS_BYTES, "address"), sequence)

    @router.get("/v1/contracts/{contract}/batches/{number}/requests/{index}/proof")
    async def request_proof(contract: str, number: Number, index: Index) -> models.RequestProof:
        """A request of a batch, and the proof that it stands there."""
        commitment = shown.batch(of(contract), number).commitment
        if index >= commitment.leaf_count:
            raise views.not_found(
                f"batch {number} has no request {index} but {commitment.leaf_count} in all", "count from 0"
            )
        proved = await node.offchain.watching.prove_request(commitment.contract_id, number, index)
        return models.RequestProof(request=proved.request, proof=encode(proved.proof))

    @router.get("/v1/contracts/{contract}/batches/{number}/state/{key}")
    async def state(request: Request, contract: str, number: Number, key: str) -> models.ValueProof:
        """A state key's value at the end of a batch, with its proof; `key` in hexadecimal, its kind's letter included."""
        authorise(request, token)
        contract_id, wanted = of(contract).terms.contract_id, _state_key(key)
        shown.batch(of(contract), number)
        entry = await node.offchain.watching.prove_key(contract_id, number, wanted)
        return models.ValueProof(key=entry.key, value=entry.value, entry=encode(entry))

    @router.get("/v1/contracts/{contract}/watch")
    async def watch(contract: str) -> models.ContractWatch:
        """How this node watches the contract's operator, and what it has found."""
        return _watch(node, of(contract).terms.contract_id)

    return router


def _state_key(text: str) -> bytes:
    if not 1 <= len(text) <= 2 * MAX_KEY_BYTES:
        detail = f"a state key has 1 to {MAX_KEY_BYTES} bytes"
        raise Problem(HTTPStatus.BAD_REQUEST, "bad_key", detail, "spchain contract machines names them")
    return parse_hex(text, (len(text) + 1) // 2, "state key")


def _watch(node: Served, contract_id: bytes) -> models.ContractWatch:
    head = node.offchain.watching.head(contract_id)
    if head is None:
        return models.ContractWatch(is_watched=False, batches=0, stage="", detail="", fault="")
    return models.ContractWatch(
        is_watched=True, batches=head.number, stage=head.stage, detail=head.detail, fault=head.fault
    )


async def _status(
    node: Served, shown: ContractViews, costs: Costs, contract: Contract, sender: bytes, sequence: int
) -> models.RequestStatus:
    contract_id = contract.terms.contract_id
    try:
        progress = await node.offchain.operating.status_of(contract_id, sender, sequence)
    except NotFound as error:
        remedy = "who has the receipt reads the status from the chain: spchain contract status --receipt"
        headers = {"Retry-After": "1"}
        raise Problem(HTTPStatus.SERVICE_UNAVAILABLE, "operator_unreachable", str(error), remedy, headers) from error
    if progress is None:
        detail = f"no operation {sequence} of {sender.hex()} is known to the operator"
        raise views.not_found(detail, "send it; if the operator ignores it, force it: spchain contract force")
    # Asked again: the chain has gone on while the operator was asked.
    contract = shown.contract(contract_id)
    known = None
    if progress.number is not None and progress.status in ("committed", "final"):
        known = shown.batch(contract, progress.number)
    return models.RequestStatus(
        status=progress.status,
        rests_on=progress.rests_on,
        batch=progress.number,
        index=progress.index,
        height=progress.committed_height,
        final_height=progress.final_height,
        cost=costs.of_newest(contract) if known is None else costs.of_batch(contract, known),
    )


async def _account(
    node: Served, shown: ContractViews, contract: Contract, account: bytes, *, with_credits: bool
) -> models.ContractAccount:
    contract_id = contract.terms.contract_id
    following: int | None
    try:
        following = await node.offchain.operating.next_sequence(contract_id, account)
    except NotFound:
        following = None
    claimed = claimed_by(node.store, contract_id, account)
    number = shown.final_count(contract) - 1
    held = await _credits(node, contract, number, account) if with_credits and number >= 0 else None
    withdrawn, balance = held or (None, None)
    owed = None
    if withdrawn is not None and balance is not None:
        owed = withdrawn - claimed.withdrawn_microcredit
        if shown.is_settled(contract) and not claimed.is_settled:
            owed += balance
    return models.ContractAccount(
        account=account,
        next_sequence=following,
        batch=None if held is None else number,
        withdrawn_microcredit=withdrawn,
        balance_microcredit=balance,
        claimed_microcredit=claimed.withdrawn_microcredit,
        is_settled=claimed.is_settled,
        owed_microcredit=owed,
    )


async def _credits(node: Served, contract: Contract, number: int, account: bytes) -> tuple[int, int] | None:
    """Return what an account has withdrawn and what it holds at the end of a batch; None where nobody here can tell."""
    try:
        keys = MACHINES.payable_keys(contract.terms, account)
        if keys is None:
            return None
        entries = [
            await node.offchain.watching.prove_key(contract.terms.contract_id, number, key)
            for key in (keys.withdrawn, keys.balance)
        ]
    except (InvalidInput, NotFound):
        return None
    withdrawn, balance = (0 if entry.value is None else _decode_amount(entry.value) for entry in entries)
    return withdrawn, balance
