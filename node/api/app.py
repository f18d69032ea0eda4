# SPDX-License-Identifier: GPL-3.0-or-later
"""The API's composition: routes, error handling, bounds."""

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from ledger.errors import InvalidInput, SpchainError
from node.api.consent import consent_routes, record_history_routes
from node.api.contract_acts import contract_act_routes
from node.api.contract_data import contract_data_routes
from node.api.contract_inner import inner_routes
from node.api.contract_models import ContractNews, Requests
from node.api.contracts import contract_routes
from node.api.epochs import epoch_routes
from node.api.errors import handle
from node.api.event_models import Event
from node.api.guard import Budget, Guard
from node.api.mining import mining_routes
from node.api.models import Submission
from node.api.proofs import proof_routes
from node.api.reads import account_routes, block_routes, chain_routes
from node.api.reputation import reputation_routes
from node.api.served import Served
from node.api.sharing import sharing_routes
from node.api.streams import stream_routes
from node.api.writes import write_routes
from node.config import NodeConfig
from node.files import read_file
from node.version import VERSION

MIN_TOKEN_CHARACTERS = 16
"""A token that cannot be guessed over a network: 64 bits of hexadecimal at least."""
MAX_TOKEN_BYTES = 1024


def create_app(node: Served, config: NodeConfig) -> ASGIApp:
    """Return the whole API of a node as an ASGI application; raises `InvalidInput` for an unusable token file."""
    token = None if config.api_token_file is None else _read_token(config)
    app = FastAPI(
        title="SPChain node",
        version=VERSION,
        openapi_url="/v1/openapi.json",
        # The pages of these would load scripts from elsewhere.
        docs_url=None,
        redoc_url=None,
        # `/v1/status/` is unknown, not somewhere else.
        redirect_slashes=False,
    )
    budget = Budget()
    app.include_router(chain_routes(node))
    app.include_router(block_routes(node))
    app.include_router(account_routes(node))
    app.include_router(write_routes(node, budget, token))
    app.include_router(stream_routes(node))
    app.include_router(mining_routes(node.mining, budget, token))
    app.include_router(reputation_routes(node))
    app.include_router(epoch_routes(node))
    app.include_router(consent_routes(node))
    app.include_router(record_history_routes(node))
    app.include_router(sharing_routes(node, budget, token))
    app.include_router(proof_routes(node))
    app.include_router(contract_routes(node))
    app.include_router(inner_routes(node, token))
    app.include_router(contract_act_routes(node, budget, token))
    app.include_router(contract_data_routes(node, budget))
    for kind in (SpchainError, RequestValidationError, HTTPException, Exception):
        app.add_exception_handler(kind, handle)
    _describe_unreferenced(app)
    return Guard(app, only_local=token is None)


def _describe_unreferenced(app: FastAPI) -> None:
    """Add the types that no signature names (a body read by hand, the events' data) to the OpenAPI document."""
    generate = app.openapi

    def openapi() -> dict[str, object]:
        document = generate()
        schemas = document.setdefault("components", {}).setdefault("schemas", {})
        for model in (Submission, Event, ContractNews, Requests):
            schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
            schema.pop("$defs", None)
            schemas.setdefault(model.__name__, schema)
        return document

    app.openapi = openapi  # type: ignore[method-assign] # FastAPI's documented way to extend the document


def _read_token(config: NodeConfig) -> bytes:
    assert config.api_token_file is not None, "checked by the caller"
    token = read_file(config.api_token_file, MAX_TOKEN_BYTES, "API token file").split(b"\n", 1)[0].strip()
    if len(token) < MIN_TOKEN_CHARACTERS or not token.isascii():
        raise InvalidInput(
            f"API token file {config.api_token_file}: the first line has {len(token)} characters; write at least "
            f"{MIN_TOKEN_CHARACTERS} of ASCII, as `openssl rand -hex 32` gives"
        )
    return token
