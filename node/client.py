# SPDX-License-Identifier: GPL-3.0-or-later
"""A typed client of a node's HTTP API, for the command line, scripts and benchmarks. Synchronous; one per thread."""

import time
from collections.abc import Iterator, Sequence
from http import HTTPStatus

import httpx
import msgspec

from ledger.blocks import SignedKeyblock
from ledger.codec import encode
from node.api import event_models, mining_models, models, proof_models, reputation_models, status_models
from node.consent_client import ConsentClient
from node.contract_client import ContractClient
from node.http_client import (
    BINARY,
    CONNECT_TIMEOUT_S,
    MSGPACK,
    PAUSE_S,
    HttpClient,
    NodeTimeout,
    NodeUnreachable,
    bounded,
    cause,
    problem,
)
from node.mining import SeedReveal

_MINING_TIMEOUT_S = 5.0
"""A miner asks and offers again and again: a node that is stuck must not hold it up."""


class NodeClient(HttpClient):
    """A connection to one node; use it as a context manager, or `close` it."""

    @property
    def consent(self) -> ConsentClient:
        """What patients decide, and the way to proxies."""
        return ConsentClient(self)

    @property
    def contracts(self) -> ContractClient:
        """Off-chain contracts."""
        return ContractClient(self)

    # ------------------------------------------------------------------ reads

    def status(self) -> status_models.Status:
        """Return how the node is."""
        return self.read(status_models.Status, "/v1/status")

    def genesis(self) -> models.GenesisInfo:
        """Return the network's genesis."""
        return self.read(models.GenesisInfo, "/v1/genesis")

    def state(self, height: int | None = None) -> models.StateAt:
        """Return the digests of the state; of the newest height with the root."""
        return self.read(models.StateAt, "/v1/state", {} if height is None else {"height": height})

    def block(self, reference: str | int = "latest") -> models.Block:
        """Return a microblock by height, hash or `latest`."""
        return self.read(models.Block, f"/v1/blocks/{reference}")

    def block_transactions(self, reference: str | int, start: int = 0, limit: int = 100) -> models.BlockTransactions:
        """Return a part of a microblock's transactions."""
        path = f"/v1/blocks/{reference}/transactions"
        return self.read(models.BlockTransactions, path, {"start": start, "limit": limit})

    def transaction(self, identifier: bytes) -> models.Transaction:
        """Return a committed transaction."""
        return self.read(models.Transaction, f"/v1/transactions/{identifier.hex()}")

    def account(self, address: bytes) -> models.Account:
        """Return an account."""
        return self.read(models.Account, f"/v1/accounts/{address.hex()}")

    def institutions(self) -> Iterator[models.Institution]:
        """Yield all registered institutions, page by page."""
        start = ""
        while True:
            query: dict[str, str | int] = {"start": start, "limit": models.MAX_PAGE}
            page = self.read(models.Institutions, "/v1/institutions", query)
            yield from page.institutions
            if page.next_start is None:
                return
            start = page.next_start.hex()

    def institution(self, address: bytes) -> models.Institution:
        """Return a registered institution."""
        return self.read(models.Institution, f"/v1/institutions/{address.hex()}")

    def patient(self, address: bytes) -> models.Patient:
        """Return a registered patient."""
        return self.read(models.Patient, f"/v1/patients/{address.hex()}")

    def records(self, patient: bytes, start: int = 0) -> Iterator[models.Record]:
        """Yield a patient's records from a sequence number on, page by page."""
        position: int | None = start
        while position is not None:
            query: dict[str, str | int] = {"start": position, "limit": models.MAX_PAGE}
            page = self.read(models.Records, f"/v1/patients/{patient.hex()}/records", query)
            yield from page.records
            position = page.next_start

    def record(self, patient: bytes, sequence: int) -> models.Record:
        """Return one record."""
        return self.read(models.Record, f"/v1/patients/{patient.hex()}/records/{sequence}")

    def miners(self, limit: int = reputation_models.MAX_MINERS) -> reputation_models.Ranking:
        """Return the miners of highest reputation, best first."""
        return self.read(reputation_models.Ranking, "/v1/miners", {"limit": limit})

    def miner(self, public_key: bytes, epoch: int | None = None) -> reputation_models.MinerReputation:
        """Return why a miner's reputation is what it is, in the running or another epoch."""
        query: dict[str, str | int] = {} if epoch is None else {"epoch": epoch}
        return self.read(reputation_models.MinerReputation, f"/v1/miners/{public_key.hex()}", query)

    def reputation_history(
        self, public_key: bytes, start: int = 0, limit: int = reputation_models.MAX_POINTS, step: int = 1
    ) -> reputation_models.ReputationHistory:
        """Return a miner's reputation in every `step`-th epoch from one on, up to so many."""
        query: dict[str, str | int] = {"start": start, "limit": limit, "step": step}
        return self.read(reputation_models.ReputationHistory, f"/v1/miners/{public_key.hex()}/history", query)

    def offences(self) -> Iterator[reputation_models.Offence]:
        """Yield all proofs of misbehaviour on the chain, page by page."""
        start = ""
        while True:
            query: dict[str, str | int] = {"start": start, "limit": reputation_models.MAX_MINERS}
            page = self.read(reputation_models.Offences, "/v1/offences", query)
            yield from page.offences
            if page.next_start is None:
                return
            start = page.next_start.hex()

    def epoch(self, reference: str | int = "latest") -> reputation_models.Epoch:
        """Return an epoch by number or `latest`."""
        return self.read(reputation_models.Epoch, f"/v1/epochs/{reference}")

    def epochs(self, start: int = 0, limit: int = reputation_models.MAX_EPOCHS) -> reputation_models.Epochs:
        """Return a part of all epochs."""
        return self.read(reputation_models.Epochs, "/v1/epochs", {"start": start, "limit": limit})

    def keyblock(self, reference: str | int = "latest") -> reputation_models.PinnedKeyblock:
        """Return a pinned keyblock by the epoch that it began, `latest`, or its hash."""
        return self.read(reputation_models.PinnedKeyblock, f"/v1/keyblocks/{reference}")

    def supply(self) -> reputation_models.Supply:
        """Return the sums of all credits."""
        return self.read(reputation_models.Supply, "/v1/supply")

    def proofs(self, keys: Sequence[bytes]) -> proof_models.Proofs:
        """Return state entries with proofs against the newest pinned keyblock; the caller checks them (`node.proving`)."""
        return self.read(proof_models.Proofs, "/v1/proofs", {"key": [key.hex() for key in keys]})

    def get_blob(self, blob_id: bytes) -> bytes:
        """Return a blob; the caller checks it."""
        return self.repeat("GET", f"/v1/blobs/{blob_id.hex()}")

    def events(
        self, from_height: int | None = None, *, receipts: bool = False, contracts: bool = False
    ) -> Iterator[event_models.Event]:
        """Yield committed microblocks from a height on, for ever; comes back by itself when the stream ends.

        `receipts` lists each transaction, `contracts` what happened to off-chain contracts.

        Raises `NodeUnreachable` when the node is gone.
        """
        while True:
            query: dict[str, str | int] = {"receipts": "true" if receipts else "false"}
            query["contracts"] = "true" if contracts else "false"
            if from_height is not None:
                query["from_height"] = from_height
            try:
                # Silence of three keep-alives means that the connection is dead.
                timeout = httpx.Timeout(self.timeout_s, connect=CONNECT_TIMEOUT_S, read=45.0)
                with self.http.stream("GET", "/v1/events", params=query, timeout=timeout) as response:
                    if response.status_code != HTTPStatus.OK:
                        raise problem(response.status_code, bounded(response))
                    for line in response.iter_lines():
                        if line.startswith("data: "):
                            event = self.parse(event_models.Event, line.removeprefix("data: ").encode())
                            from_height = event.height + 1
                            yield event
            except httpx.TimeoutException as error:
                raise NodeTimeout(self.url, self.timeout_s) from error
            except httpx.ConnectError as error:
                raise NodeUnreachable(self.url, cause(error)) from error
            except httpx.HTTPError:
                # Cut in the middle of the stream: whether the node is still there shows on coming back.
                pass
            time.sleep(PAUSE_S)

    # ------------------------------------------------------------------ writes

    def submit(self, raws: Sequence[bytes], wait_ms: int = 0) -> tuple[models.Outcome, ...]:
        """Hand in signed transactions; one outcome each. With `wait_ms` the receipts are waited for."""
        timeout_s = self.timeout_s + wait_ms / 1000
        body = self.send(
            "POST",
            "/v1/transactions",
            content=msgspec.msgpack.encode(list(raws)),
            params={"wait_ms": wait_ms},
            headers=MSGPACK,
            timeout_s=timeout_s,
        )
        return self.parse(models.SubmitResult, body).outcomes

    def put_blob(self, blob: bytes) -> bytes:
        """Hand in an encrypted record; returns its identifier."""
        return self.parse(models.BlobPut, self.send("PUT", "/v1/blobs", content=blob, headers=BINARY)).blob_id

    # ------------------------------------------------------------------ mining: once each, for a miner repeats everything itself

    def mining_work(
        self, miner: bytes, epoch: int | None = None, *, reveal: bool = True, wait_s: int = 0
    ) -> mining_models.MiningWork:
        """Return a miner's work; with `epoch` and `wait_s`, as soon as another epoch runs.

        Comes back at once as long as the miner's reveal is wanted, unless `reveal` is false.
        """
        query: dict[str, str | int] = {"miner": miner.hex(), "reveal": "true" if reveal else "false", "wait_s": wait_s}
        if epoch is not None:
            query["epoch"] = epoch
        body = self.send("GET", "/v1/mining/work", params=query, timeout_s=_MINING_TIMEOUT_S + wait_s)
        return self.parse(mining_models.MiningWork, body)

    def offer_keyblock(self, signed: SignedKeyblock) -> mining_models.KeyblockTaken:
        """Hand in a keyblock."""
        return self.parse(mining_models.KeyblockTaken, self._mined("/v1/mining/keyblocks", encode(signed)))

    def reveal_seed(self, epoch: int, signature: bytes) -> mining_models.RevealTaken:
        """Hand in the reveal for the epoch that one's keyblock began."""
        return self.parse(
            mining_models.RevealTaken, self._mined("/v1/mining/reveals", encode(SeedReveal(epoch, signature)))
        )

    def _mined(self, path: str, content: bytes) -> bytes:
        return self.send("POST", path, content=content, headers=MSGPACK, timeout_s=_MINING_TIMEOUT_S)
