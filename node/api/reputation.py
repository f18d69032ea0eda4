# SPDX-License-Identifier: GPL-3.0-or-later
"""Routes about miners, from the committed state alone: who ranks where, why a reputation is what it is, offences, credits."""

from collections.abc import Iterator
from http import HTTPStatus
from typing import Annotated

import msgspec
import trio
from fastapi import APIRouter, Query

from consensus.committee import Committee
from consensus.explanation import MinerExplanation, Ranked, explain_miner, ranking
from consensus.standings import Standings, may_sit
from ledger.crypto.keys import PUBLIC_KEY_BYTES, address_of, is_public_key
from ledger.miners import Offence
from ledger.rules import REPUTATION_UNIT
from ledger.state import MINERS, OFFENCES, State, scan
from ledger.store import Store
from node.api import reputation_models as models
from node.api.bodies import parse_hex
from node.api.epochs import committee_of, institution_name, record_of
from node.api.errors import Problem
from node.api.served import Served

_MAX = 2**63 - 1
_STEPS = 64
"""Epochs of a history between two chances for others: about 2 ms."""
Number = Annotated[int | None, Query(ge=0, le=_MAX, description="Epoch asked about; else the running one.")]


def reputation_routes(node: Served) -> APIRouter:
    """Return the routes about miners and credits."""
    router = APIRouter(tags=["reputation"])
    store = node.store

    @router.get("/v1/miners")
    async def miners(limit: Annotated[int, Query(ge=1, le=models.MAX_MINERS)] = 64) -> models.Ranking:
        """The miners of highest reputation in the running epoch, best first; after them the punished, whose R is 0."""
        return _ranking(store, node.standings, limit)

    @router.get("/v1/miners/{public_key}")
    async def miner(public_key: str, epoch: Number = None) -> models.MinerReputation:
        """A miner's reputation in the running or a past epoch, with every figure that it comes from and why it changed.

        Who never mined has what a newcomer has, and is not eligible.
        """
        key = _miner_key(public_key)
        return _explanation(store, key, _newest(store) if epoch is None else epoch)

    @router.get("/v1/miners/{public_key}/history")
    async def history(
        public_key: str,
        start: Annotated[int, Query(ge=0, le=_MAX, description="First epoch wanted.")] = 0,
        limit: Annotated[int, Query(ge=1, le=models.MAX_POINTS, description="Most points wanted.")] = 100,
        step: Annotated[int, Query(ge=1, le=2**32, description="Epochs from one point to the next.")] = 1,
    ) -> models.ReputationHistory:
        """A miner's reputation over epochs: one point for every `step`-th."""
        key, newest = _miner_key(public_key), _newest(store)
        points: list[models.ReputationPoint] = []
        epoch = start
        while epoch <= newest and len(points) < limit:
            points.append(_point(store, key, epoch))
            epoch += step
            if len(points) % _STEPS == 0:
                await trio.lowlevel.checkpoint()
        following = epoch if epoch <= newest else None
        return models.ReputationHistory(public_key=key, points=tuple(points), next_start=following)

    @router.get("/v1/offences")
    async def offences(
        start: str = "", limit: Annotated[int, Query(ge=1, le=models.MAX_MINERS)] = 100
    ) -> models.Offences:
        """Proofs of misbehaviour on the chain, in the order of the offenders' public keys; `start` is such a key."""
        first = parse_hex(start, PUBLIC_KEY_BYTES, "public key") if start else b""
        found = [
            _offence(key, entry, is_punished=not node.standings.history(key).is_honest)
            for key, entry in scan(store, OFFENCES, b"", first, limit + 1)
        ]
        following = found[limit].public_key if len(found) > limit else None
        return models.Offences(offences=tuple(found[:limit]), next_start=following)

    @router.get("/v1/supply")
    async def supply() -> models.Supply:
        """All credits: minted, burnt, in flight, in contracts, and what the accounts hold together."""
        state, head = State(store), store.head()
        sums = state.supply()
        held = sums.minted_microcredit - sums.burnt_microcredit
        held -= sums.fees_in_flight_microcredit + sums.contracts_microcredit
        return models.Supply(
            height=head.height,
            epoch=state.progress().epoch,
            balances_microcredit=held,
            **msgspec.structs.asdict(sums),
        )

    return router


# ------------------------------------------------------------------ ranking


def _ranking(store: Store, standings: Standings, limit: int) -> models.Ranking:
    epoch = _newest(store)
    record = record_of(store, epoch)
    committee = committee_of(epoch, record)
    ranked = [*ranking(standings, committee, limit)]
    ranked += _punished(store, standings, committee, limit - len(ranked))
    return models.Ranking(
        epoch=epoch,
        keyblock=record.keyblock,
        known_miners=len(standings),
        term_microblocks=store.genesis.parameters.term_microblocks,
        miners=tuple(_ranked(store, rank, entry, epoch) for rank, entry in enumerate(ranked, 1)),
    )


def _punished(store: Store, standings: Standings, committee: Committee, room: int) -> Iterator[Ranked]:
    """Yield those who have lost all reputation, in the order of their keys."""
    if room == 0:
        return
    # Whose punishment is to come is still ranked, and there are fewer than a limit of them: else there would be no room.
    for key, _ in scan(store, OFFENCES, b"", b"", models.MAX_MINERS):
        history = standings.history(key)
        if not history.is_honest:
            yield Ranked(key, 0, history, committee.index_of(address_of(key)))
            room -= 1
            if room == 0:
                return


def _ranked(store: Store, rank: int, ranked: Ranked, epoch: int) -> models.RankedMiner:
    key, history = ranked.public_key, ranked.history
    explained = explain_miner(store, store.genesis.parameters, key, epoch)
    address = address_of(key)
    return models.RankedMiner(
        rank=rank,
        public_key=key,
        address=address,
        institution=institution_name(store, address),
        reputation_nano=ranked.reputation_nano,
        change_nano=None if explained.change is None else explained.change.reputation_nano,
        external_nano=history.external_nano,
        keyblocks=history.keyblocks,
        terms=history.terms,
        microblocks=history.microblocks,
        seat=ranked.seat,
        is_honest=history.is_honest,
        is_eligible=may_sit(history),
        offence=_offence(key, explained.offence, is_punished=not history.is_honest) if explained.offence else None,
    )


def _offence(key: bytes, entry: Offence, *, is_punished: bool) -> models.Offence:
    return models.Offence(
        public_key=key, address=address_of(key), is_punished=is_punished, **msgspec.structs.asdict(entry)
    )


# ------------------------------------------------------------------ one miner


def _explanation(store: Store, key: bytes, epoch: int) -> models.MinerReputation:
    record, parameters = record_of(store, epoch), store.genesis.parameters
    explained = explain_miner(store, parameters, key, epoch)
    address, found = address_of(key), explained.reputation
    committee = committee_of(epoch, record)
    seat = committee.index_of(address)
    weight = None
    if seat is not None:
        weight = committee.members[seat].reputation_nano * REPUTATION_UNIT // committee.total_reputation_nano
    offence = None
    if explained.offence is not None:
        newest = State(store).get(MINERS, key)
        offence = _offence(key, explained.offence, is_punished=newest is not None and not newest.is_honest)
    change = explained.change
    return models.MinerReputation(
        public_key=key,
        address=address,
        institution=institution_name(store, address),
        epoch=epoch,
        keyblock=record.keyblock,
        history_epoch=explained.history_epoch,
        reputation_nano=found.reputation_nano,
        is_eligible=explained.is_eligible,
        seat=seat,
        weight_nano=weight,
        mining=_mining(store, explained),
        leading=_leading(parameters.term_microblocks, explained),
        x_nano=found.x_nano,
        midpoint_keyblocks=parameters.reputation.midpoint_keyblocks,
        flatness_keyblocks=parameters.reputation.flatness_keyblocks,
        earned_nano=found.earned_nano,
        external_nano=found.external_nano,
        is_honest=found.is_honest,
        offence=offence,
        change=None if change is None else models.ReputationChange.model_validate(change),
    )


def _mining(store: Store, explained: MinerExplanation) -> models.MiningPart:
    history, found = explained.history, explained.reputation
    return models.MiningPart(
        keyblocks=history.keyblocks,
        squares=history.closed_chunk_squares + history.chunk_keyblocks**2,
        chain_keyblocks=explained.epoch,
        chunk_keyblocks=store.genesis.parameters.reputation.chunk_keyblocks,
        chunks=explained.chunks,
        mean_nano=found.mean_keyblocks_nano,
        deviation_nano=found.keyblock_deviation_nano,
        y1_nano=_steady(found.mean_keyblocks_nano, found.keyblock_deviation_nano),
        newest_chunks=_newest_chunks(store, explained),
    )


def _leading(term_microblocks: int, explained: MinerExplanation) -> models.LeadingPart:
    history, found = explained.history, explained.reputation
    return models.LeadingPart(
        terms=history.terms,
        microblocks=history.microblocks,
        squares=history.microblock_squares,
        term_microblocks=term_microblocks,
        mean_nano=found.mean_microblocks_nano,
        deviation_nano=found.microblock_deviation_nano,
        y2_nano=_steady(found.mean_microblocks_nano, found.microblock_deviation_nano),
    )


def _steady(mean_nano: int, deviation_nano: int) -> int:
    """Return a mean divided by 1 and its deviation, as y1 and y2 are."""
    return mean_nano * REPUTATION_UNIT // (REPUTATION_UNIT + deviation_nano)


def _newest_chunks(store: Store, explained: MinerExplanation) -> tuple[models.ChunkShare, ...]:
    """Return what the miner has found in each of the newest chunks: the histories at their ends tell it."""
    parameters, newest = store.genesis.parameters, explained.epoch
    size = parameters.reputation.chunk_keyblocks
    shares: list[models.ChunkShare] = []
    found = explained.history.keyblocks
    for chunk in range(explained.chunks - 1, max(-1, explained.chunks - 1 - models.MAX_CHUNKS), -1):
        first = chunk * size
        before = explain_miner(store, parameters, explained.public_key, first).history.keyblocks
        length = min(newest, first + size) - first
        shares.append(models.ChunkShare(chunk=chunk, chain_keyblocks=length, keyblocks=found - before))
        found = before
    return tuple(reversed(shares))


def _point(store: Store, key: bytes, epoch: int) -> models.ReputationPoint:
    explained = explain_miner(store, store.genesis.parameters, key, epoch)
    return models.ReputationPoint(
        epoch=epoch,
        reputation_nano=explained.reputation.reputation_nano,
        keyblocks=explained.history.keyblocks,
        terms=explained.history.terms,
        is_honest=explained.history.is_honest,
    )


# ------------------------------------------------------------------ requests


def _newest(store: Store) -> int:
    return State(store).progress().epoch


def _miner_key(text: str) -> bytes:
    key = parse_hex(text, PUBLIC_KEY_BYTES, "miner")
    if not is_public_key(key):
        detail = f"miner {text} is not a compressed secp256k1 point"
        raise Problem(HTTPStatus.BAD_REQUEST, "bad_key", detail, "give the public key that `spchain key show` prints")
    return key
