# SPDX-License-Identifier: GPL-3.0-or-later
"""Addresses of peers met, on disk: a node that starts again finds the network although its bootstrap node may be away.

Without it, a bootstrap node that was killed waits until others dial it, which they do ever more rarely.
"""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Annotated

import msgspec
import structlog
import trio

from ledger.errors import InvalidInput
from node.files import read_file, replace_file
from p2p.addresses import parse_address
from p2p.config import PeerInfo

log = structlog.get_logger()

MAX_PEERS = 32
"""Enough to find the network again; each is dialled until it answers, at most every 30 s."""
SAVE_INTERVAL_S = 5.0
_MAX_BYTES = 16 * 1024

_decoder = msgspec.json.Decoder(Annotated[list[str], msgspec.Meta(max_length=MAX_PEERS)])


def load_peers(path: Path) -> tuple[str, ...]:
    """Return the addresses saved before; a damaged file counts as none, for it only saves time."""
    if not path.exists():
        return ()
    try:
        return tuple(parse_address(text).text for text in _decoder.decode(read_file(path, _MAX_BYTES, "peer book")))
    except (InvalidInput, msgspec.DecodeError, UnicodeDecodeError) as error:
        log.warning("peer book is damaged and ignored", path=str(path), error=str(error))
        return ()


def bootstrap_addresses(configured: Sequence[str], remembered: Iterable[str], own_peer_id: str) -> tuple[str, ...]:
    """Return whom to dial at the start: the operator's choice first, then peers met, one address each."""
    chosen = list(configured)
    known = {own_peer_id, *(text.rpartition("/")[2] for text in configured)}
    for text in remembered:
        peer_id = text.rpartition("/")[2]
        if peer_id not in known:
            known.add(peer_id)
            chosen.append(text)
    return tuple(chosen)


async def keep_peers(path: Path, peers: Callable[[], Sequence[PeerInfo]]) -> None:
    """Save the first address of each connected peer whenever they change; the book never shrinks to nothing."""
    saved: list[str] = []
    while True:
        met = sorted({info.addresses[0] for info in peers() if info.addresses})[:MAX_PEERS]
        if met and met != saved:
            try:
                await trio.to_thread.run_sync(replace_file, path, msgspec.json.encode(met), 0o600)
            except InvalidInput as error:
                log.warning("peer book could not be saved", path=str(path), error=str(error))
            saved = met
        await trio.sleep(SAVE_INTERVAL_S)
