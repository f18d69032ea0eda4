# SPDX-License-Identifier: GPL-3.0-or-later
"""The route that proves: entries of the state under the root that the newest pinned keyblock carries."""

import re
from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Query

from consensus.restart import decode_signed, epoch_record
from ledger.blocks import SignedKeyblock, keyblock_hash
from ledger.codec import encode
from ledger.state import State
from ledger.store import Store
from node.api import proof_models as models
from node.api.errors import Problem
from node.api.served import Served

_KEY = re.compile(rf"(?:[0-9a-fA-F]{{2}}){{1,{models.MAX_KEY_BYTES}}}")


def proof_routes(node: Served) -> APIRouter:
    """Return the routes about proofs."""
    router = APIRouter(tags=["proofs"])
    store = node.store

    @router.get("/v1/proofs")
    async def proofs(
        key: Annotated[
            list[str],
            Query(
                min_length=1,
                max_length=models.MAX_PROOF_KEYS,
                description="State keys: prefix of the table, and the entry's own key.",
            ),
        ],
    ) -> models.Proofs:
        """Values of state keys, or that there are none, with proofs against the newest pinned keyblock.

        The state is that of the beginning of the epoch which the keyblock ended; what was committed since is there two keyblocks later.
        """
        keys = [_parse_key(text) for text in key]
        epoch, signed = newest_keyblock(store)
        snapshot = store.snapshot_at(signed.keyblock.state_root)
        return models.Proofs(
            keyblock_hash=keyblock_hash(signed.keyblock),
            keyblock=encode(signed),
            epoch=epoch,
            height=snapshot.height,
            entries=tuple(
                models.ProvedEntry(key=each, value=snapshot.get_state(each), proof=encode(snapshot.prove(each)))
                for each in keys
            ),
        )

    return router


def newest_keyblock(store: Store) -> tuple[int, SignedKeyblock]:
    """Return the newest pinned keyblock and the number of the epoch that it began; raises `Problem` when there is none."""
    epoch = State(store).progress().epoch
    record = epoch_record(store, epoch)
    if record is None:
        interval_s = store.genesis.parameters.work.interval_ms // 1000
        raise Problem(
            HTTPStatus.NOT_FOUND,
            "no_keyblock",
            "no keyblock is pinned yet, so there is nothing to prove against",
            f"wait for the first ones, which take about {interval_s} s each while somebody mines: spchain epoch show",
        )
    raw = store.microblock(record.root_hash)
    assert raw is not None, f"the store keeps the microblock that epoch {epoch} began with"
    signed = decode_signed(raw).microblock.keyblock
    assert signed is not None, f"the root of epoch {epoch} pins a keyblock"
    return epoch, signed


def _parse_key(text: str) -> bytes:
    if not _KEY.fullmatch(text):
        detail = f"state key {text[:80]!r} is not 1 to {models.MAX_KEY_BYTES} bytes in hexadecimal"
        raise Problem(
            HTTPStatus.BAD_REQUEST, "bad_key", detail, "see the tables of the state in the protocol reference"
        )
    return bytes.fromhex(text)
