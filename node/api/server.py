# SPDX-License-Identifier: GPL-3.0-or-later
"""Serves the API by hypercorn under Trio."""

import logging
import socket
from typing import TYPE_CHECKING

import structlog
import trio
from hypercorn.config import Config, Sockets
from hypercorn.trio import serve

from ledger.errors import InvalidInput
from node.api.app import create_app
from node.api.served import Served
from node.config import NodeConfig, split_listen

if TYPE_CHECKING:
    # The stubs of trio-typing, which libp2p brings, stand before Trio's own types.
    from trio_typing import TaskStatus

log = structlog.get_logger()

SEND_TIMEOUT_S = 30
"""A client that takes nothing for this long is disconnected. hypercorn shields its sends from cancellation, so that one client that
never reads would hold up the node's end for ever."""
BACKLOG = 256
"""Connections waiting to be accepted: as many as requests are served at once."""


class _ServerConfig(Config):
    """hypercorn's settings, with a socket of our own."""

    def __init__(self, bound: socket.socket) -> None:
        super().__init__()
        self._bound = bound
        # Its log would go to standard error beside ours, in another form; errors reach ours through the guard.
        quiet = logging.getLogger("spchain.hypercorn")
        quiet.addHandler(logging.NullHandler())
        quiet.propagate = False
        self.errorlog = quiet
        self.accesslog = None
        self.backlog = BACKLOG
        self.include_server_header = False
        self.graceful_timeout = 1.0
        # Header of a request: our longest has a token of 1 KiB.
        self.h11_max_incomplete_size = 16 * 1024

    def create_sockets(self) -> Sockets:
        """Hand over the socket that was bound already."""
        return Sockets([], [self._bound], [])


def _bind(listen: str, send_timeout_s: float) -> socket.socket:
    """Bind the one address; raises `InvalidInput` when that is not possible."""
    host, port = split_listen(listen)
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Inherited by accepted connections; also ends those whose window stays closed.
        bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(send_timeout_s * 1000))
        bound.setblocking(False)  # noqa: FBT003 -- the socket's own interface
        bound.bind((host, port))
    except OSError as error:
        bound.close()
        raise InvalidInput(
            f"the API cannot listen on {listen}: {error.strerror}; stop what uses the port, or set api_listen"
        ) from error
    return bound


async def serve_api(
    node: Served,
    config: NodeConfig,
    *,
    task_status: "TaskStatus[str]" = trio.TASK_STATUS_IGNORED,
    send_timeout_s: float = SEND_TIMEOUT_S,
) -> None:
    """Serve until cancelled; `task_status` gets the base URL. Raises `InvalidInput` when the port cannot be had."""
    app = create_app(node, config)
    # Outside of any nursery, so that a port in use comes as a plain error.
    settings = _ServerConfig(_bind(config.api_listen, send_timeout_s))
    async with trio.open_nursery() as nursery:
        binds: list[str] = await nursery.start(serve, app, settings)
        url = binds[0]
        log.info("API is up", url=url, token=config.api_token_file is not None)
        task_status.started(url)
