# SPDX-License-Identifier: GPL-3.0-or-later
"""A lone node whose institutions are proxies, each with desk, key fragments and access log; only the network between is missing."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Self

import trio

from ledger.errors import InvalidInput
from ledger.rules import DEVNET_PARAMETERS
from node.clock import now_ms
from node.genesis_file import make_genesis
from node.identity import Identity
from node.run import open_desk
from node.wire import Relayed
from records.access_entries import decode_query
from records.grants import decode_sealed
from records.proxy import ProxyView
from records.proxy_desk import FragmentRefused, ProxyDesk, QueryRefused
from records.requests import decode_request
from tests.node.api_kit import UNREACHABLE, LoneNode

INSTITUTIONS = [Identity(bytes(31) + bytes([number]), f"Hospital {number}") for number in range(1, 6)]


class Proxies:
    """Implements `node.api.served.Proxies`: the institutions' desks at one table."""

    def __init__(self, node: LoneNode, directory: Path) -> None:
        self._node = node
        self._stack = ExitStack()
        self.desks: dict[bytes, ProxyDesk] = {}
        self.down: set[bytes] = set()
        """Proxies that cannot be reached."""
        self.changed: dict[bytes, Callable[[bytes], bytes]] = {}
        """Proxies that lie: what becomes of their answers."""
        for identity in INSTITUTIONS:
            desk = open_desk(directory / identity.name, identity, node.chain_id)
            self.desks[identity.address] = self._stack.enter_context(desk)

    def close(self) -> None:
        self._stack.close()

    def view(self) -> ProxyView:
        head = self._node.store.head()
        return ProxyView(
            reader=self._node.store,
            chain_id=self._node.chain_id,
            head_height=head.height,
            head_timestamp_ms=head.timestamp_ms,
            clock_ms=now_ms(),
            is_catching_up=False,
        )

    def sweep(self) -> None:
        for desk in self.desks.values():
            desk.sweep(self.view())

    async def deliver(self, sealed: Sequence[bytes]) -> list[tuple[bytes, Relayed]]:
        await trio.lowlevel.checkpoint()
        work = [(decode_sealed(raw).proxy, raw) for raw in sealed]
        return [(proxy, self._at(proxy, ProxyDesk.take_fragment, raw)) for proxy, raw in work]

    async def ask_proxies(self, raw: bytes, wanted: tuple[bytes, ...]) -> list[tuple[bytes, Relayed]]:
        await trio.lowlevel.checkpoint()
        decode_request(raw)
        return [(proxy, self._at(proxy, ProxyDesk.answer, raw)) for proxy in wanted]

    async def ask_log(self, raw: bytes) -> tuple[bytes, Relayed]:
        await trio.lowlevel.checkpoint()
        proxy = decode_query(raw).query.proxy
        return proxy, self._at(proxy, ProxyDesk.show_log, raw)

    def _at(self, proxy: bytes, act: Callable[[ProxyDesk, bytes, ProxyView], bytes | None], raw: bytes) -> Relayed:
        if proxy in self.down or proxy not in self.desks:
            return UNREACHABLE
        try:
            answer = act(self.desks[proxy], raw, self.view())
        except (FragmentRefused, QueryRefused) as refused:
            return Relayed(refused.reason.value, str(refused), b"")
        except InvalidInput as error:
            return Relayed("invalid_input", str(error), b"")
        assert answer is not None
        return Relayed("", "", self.changed.get(proxy, bytes)(answer))


class CareNode(LoneNode):
    """A lone node with `INSTITUTIONS`, all accredited and at work."""

    def __init__(self, directory: Path) -> None:
        members = [identity.public.public_key for identity in INSTITUTIONS]
        # The chain's time must be near the clock, as it is on a real network.
        super().__init__(make_genesis("care", members, now_ms() - 30_000, parameters=DEVNET_PARAMETERS))
        self.proxies = self.proxying = Proxies(self, directory)
        self.proxies.sweep()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.proxies.close()
