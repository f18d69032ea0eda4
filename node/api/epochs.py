# SPDX-License-Identifier: GPL-3.0-or-later
"""Routes about epochs and the keyblocks that began them, from the committed state alone."""

from http import HTTPStatus
from typing import Annotated, Any

import msgspec
import trio
from fastapi import APIRouter, Query

from consensus.committee import Committee, CommitteeMember
from consensus.founding import founding_record
from consensus.restart import decode_signed, epoch_record
from consensus.work import work_of
from ledger.blocks import Microblock
from ledger.codec import encode
from ledger.crypto.keys import address_of
from ledger.genesis import genesis_seed
from ledger.miners import EpochRecord
from ledger.state import EPOCHS, INSTITUTIONS, State, scan
from ledger.store import Store
from node.api import reputation_models as models
from node.api.bodies import parse_hex
from node.api.errors import Problem
from node.api.served import Served
from node.api.views import not_found

_DIGEST_BYTES = 32
_MAX = 2**63 - 1
_DIGITS = 19
"""Of the largest number."""
_SEARCHED = 100
"""Rows searched for a keyblock between two chances for others: at most 3 ms."""
_WAIT = "wait for the next keyblock, or ask another node"


def epoch_routes(node: Served) -> APIRouter:
    """Return the routes about epochs and keyblocks."""
    router = APIRouter(tags=["epochs"])
    store = node.store

    @router.get("/v1/epochs")
    async def epochs(
        start: Annotated[int, Query(ge=0, le=_MAX, description="First epoch wanted.")] = 0,
        limit: Annotated[int, Query(ge=1, le=models.MAX_EPOCHS, description="Most epochs wanted.")] = 64,
    ) -> models.Epochs:
        """Epochs, the founding one first."""
        newest = State(store).progress().epoch
        end = min(newest + 1, start + limit)
        records = {number: record_of(store, number) for number in range(max(0, start - 1), min(newest + 1, end + 1))}
        found = tuple(models.EpochSummary(**_summary(store, number, records)) for number in range(start, end))
        return models.Epochs(epochs=found, next_start=end if end <= newest and found else None)

    @router.get("/v1/epochs/{reference}")
    async def epoch(reference: str) -> models.Epoch:
        """An epoch, by number or `latest`: its keyblock, target, committee, and what it has come to if it runs."""
        number = _number_of(store, reference)
        around = range(max(0, number - 1), min(State(store).progress().epoch, number + 1) + 1)
        return _epoch(store, number, {other: record_of(store, other) for other in around})

    @router.get("/v1/keyblocks/{reference}")
    async def keyblock(reference: str) -> models.PinnedKeyblock:
        """A pinned keyblock, whole: by the epoch that it began, `latest`, or its hash if it is among the newest 1000."""
        if len(reference) == 2 * _DIGEST_BYTES:
            number = await _search(store, parse_hex(reference, _DIGEST_BYTES, "keyblock"))
        else:
            number = _number_of(store, reference)
        if number == 0:
            raise not_found("epoch 0 began with the genesis and not with a keyblock", _WAIT)
        return _keyblock(store, number)

    return router


# ------------------------------------------------------------------ for other routes, too


def record_of(store: Store, epoch: int) -> EpochRecord:
    """Return how an epoch began; raises `Problem` for one that has not."""
    if epoch == 0:
        root_hash = store.block_hash(0)
        assert root_hash is not None, "a store begins with the genesis"
        return founding_record(store.genesis, root_hash)
    record = epoch_record(store, epoch)
    if record is None:
        newest = State(store).progress().epoch
        raise not_found(f"epoch {epoch} has not begun here; the newest is {newest}", _WAIT)
    return record


def committee_of(epoch: int, record: EpochRecord) -> Committee:
    """Return an epoch's committee."""
    members = (CommitteeMember(s.public_key, address_of(s.public_key), s.reputation_nano) for s in record.seats)
    return Committee(epoch, tuple(members))


def institution_name(store: Store, address: bytes) -> str | None:
    """Return the name that an account is registered under as an institution, if it is."""
    institution = State(store).get(INSTITUTIONS, address)
    return None if institution is None else institution.name


# ------------------------------------------------------------------ epochs


def _number_of(store: Store, reference: str) -> int:
    """Return the epoch of that number, or the running one; raises `Problem`."""
    newest = State(store).progress().epoch
    if reference == "latest":
        return newest
    if not (reference.isascii() and reference.isdecimal() and len(reference) <= _DIGITS):
        raise Problem(
            HTTPStatus.BAD_REQUEST,
            "bad_epoch",
            f"{reference[:80]!r} names no epoch",
            "give a number, from 0 on, or `latest`; a keyblock may also be named by the 64 digits of its hash",
        )
    if int(reference) > newest:
        raise not_found(f"epoch {reference} has not begun here; the newest is {newest}", _WAIT)
    return int(reference)


def _epoch(store: Store, number: int, records: dict[int, EpochRecord]) -> models.Epoch:
    record = records[number]
    committee = committee_of(number, record)
    seats = tuple(
        models.EpochSeat(
            seat=index,
            public_key=member.public_key,
            address=member.address,
            institution=institution_name(store, member.address),
            reputation_nano=member.reputation_nano,
        )
        for index, member in enumerate(committee.members)
    )
    return models.Epoch(
        **_summary(store, number, records),
        committee=seats,
        committee_reputation_nano=committee.total_reputation_nano,
        quorum_votes=committee.quorum_votes,
        faults=committee.faults,
        seed=_seed(store, number, record),
        progress=_progress(store) if number + 1 not in records else None,
    )


def _summary(store: Store, number: int, records: dict[int, EpochRecord]) -> dict[str, Any]:
    """Return the fields of `models.EpochSummary`; `records` are those of the epoch and of its neighbours."""
    record, before, after = records[number], records.get(number - 1), records.get(number + 1)
    microblocks = after.root_height - record.root_height if after else State(store).progress().microblocks
    return {
        "number": number,
        "keyblock": record.keyblock,
        "root_height": record.root_height,
        "root_hash": record.root_hash,
        "first_round": record.root_round + 1,
        "miner": None if before is None else record.miner,
        "reputation_nano": None if before is None else record.reputation_nano,
        "timestamp_ms": record.timestamp_ms,
        "interval_ms": None if before is None else record.timestamp_ms - before.timestamp_ms,
        "target": record.target,
        "expected_hashes": work_of(int.from_bytes(record.target, "big")),
        "microblocks": microblocks,
        "end_height": None if after is None else after.root_height,
        "members": len(record.seats),
    }


def _seed(store: Store, number: int, record: EpochRecord) -> bytes | None:
    """Return the leaders' seed, which stands in every microblock of the epoch."""
    if number == 0:
        return genesis_seed(record.keyblock)
    opening = store.block_hash(record.root_height + 1)
    return None if opening is None else _microblock(store, opening).header.seed


def _progress(store: Store) -> models.EpochProgress:
    progress = State(store).progress()
    return models.EpochProgress(
        round=progress.round,
        leader=progress.leader if progress.microblocks else b"",
        term_microblocks=progress.term_microblocks,
        window_keyblocks=progress.window_keyblocks,
        window_size=store.genesis.parameters.work.window_keyblocks,
        window_start_ms=progress.window_start_ms,
    )


# ------------------------------------------------------------------ keyblocks


async def _search(store: Store, keyblock_hash: bytes) -> int:
    """Return the epoch that a keyblock began, if it is among the newest ones; raises `Problem`."""
    newest = State(store).progress().epoch
    oldest = max(1, newest + 1 - models.MAX_SEARCHED_KEYBLOCKS)
    end = newest + 1
    while end > oldest:
        start = max(oldest, end - _SEARCHED)
        for key, record in scan(store, EPOCHS, b"", start.to_bytes(8, "big"), end - start):
            if record.keyblock == keyblock_hash:
                return int.from_bytes(key, "big")
        await trio.lowlevel.checkpoint()
        end = start
    raise not_found(
        f"keyblock {keyblock_hash.hex()} is not among the newest {models.MAX_SEARCHED_KEYBLOCKS} that are pinned here",
        "check the hash; name an older one by its epoch, which stands in every microblock beside the keyblock's hash",
    )


def _keyblock(store: Store, number: int) -> models.PinnedKeyblock:
    record = record_of(store, number)
    signed = _microblock(store, record.root_hash).keyblock
    assert signed is not None, f"the root of epoch {number} pins a keyblock"
    fields = msgspec.structs.asdict(signed.keyblock)
    address = address_of(record.miner)
    return models.PinnedKeyblock(
        keyblock_hash=record.keyblock,
        epoch=number,
        pinned_height=record.root_height,
        pinned_hash=record.root_hash,
        **fields,
        address=address,
        institution=institution_name(store, address),
        expected_hashes=work_of(int.from_bytes(signed.keyblock.target, "big")),
        signature=signed.signature,
        raw=encode(signed),
    )


def _microblock(store: Store, block_hash: bytes) -> Microblock:
    raw = store.microblock(block_hash)
    assert raw is not None, f"the store keeps microblock {block_hash.hex()}"
    return decode_signed(raw).microblock
