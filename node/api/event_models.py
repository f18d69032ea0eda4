# SPDX-License-Identifier: GPL-3.0-or-later
"""The shape of events on the HTTP API."""

from node.api.contract_models import ContractNews
from node.api.models import Hex, Model


class Event(Model):
    """A committed microblock, as `GET /v1/events` tells it."""

    height: int
    """Its height."""
    block_hash: Hex
    """Its hash."""
    timestamp_ms: int
    """Its time, in milliseconds since 1970 (UTC)."""
    transactions: int
    """Number of transactions that took effect."""
    rejected: int
    """Number of transactions that did not."""
    receipts: tuple[tuple[Hex, str], ...] | None = None
    """Identifier of each transaction and why it had no effect, or an empty text; only when asked for."""
    contracts: tuple[ContractNews, ...] | None = None
    """What happened to off-chain contracts; only when asked for."""
