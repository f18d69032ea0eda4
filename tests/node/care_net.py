# SPDX-License-Identifier: GPL-3.0-or-later
"""A patient's decisions on a whole network in one process: institutions, a patient, a record, grants, requests."""

import itertools
import secrets
from collections.abc import Container, Mapping

import trio

from ledger import queries
from ledger.bodies import Body, GrantAccess, LabelRecord, RegisterInstitution, RevokeAccess
from ledger.codec import encode
from ledger.crypto.development_key import DEVELOPMENT_VERIFYING_KEY
from ledger.lmdb_store import LmdbStore
from ledger.sharing import Grant
from ledger.transactions import check_shape, sign_transaction, transaction_id
from node.actions import chain_records, fresh_envelope
from node.api import views
from node.clock import now_ms
from node.identity import Identity
from node.parties import registration
from records.answers import Collection
from records.chameleon_keys import DEVELOPMENT_PROVING_KEY
from records.chameleon_prover import Prover
from records.envelope import open_shared, parse_blob, seal
from records.grants import GrantChoice, PreparedGrant, prepare_grant
from records.labelling import build_label, open_permission, permission_for, permit
from records.requests import NONCE_BYTES, SignedRequest, sign_request
from tests.node.kit import until
from tests.node.networks import CHAIN, MEMBERS, Net

MARIA = Identity(b"\x51" * 32, "Maria")
READER = Identity(b"\x52" * 32, "Paul")
BUNDLE = b"a bundle"
PROVER = Prover(DEVELOPMENT_PROVING_KEY, DEVELOPMENT_VERIFYING_KEY)


class Care:
    """What happens on one network, by way of its first node."""

    def __init__(self, net: Net) -> None:
        self.net = net
        self.blobs: list[bytes] = []

    @property
    def store(self) -> LmdbStore:
        """The first node's."""
        return self.net.nodes[0].store

    async def commit(self, identity: Identity, body: Body, node: int = 0) -> None:
        """Commit a transaction on every node that runs."""
        service = self.net.nodes[node].service
        raw = sign_transaction(
            CHAIN,
            identity.signing,
            nonce=service.next_nonce(identity.address),
            fee_microcredit=10,
            expiry_height=50_000,
            body=body,
        )
        identifier = transaction_id(raw)
        (outcome,) = await service.submit([raw])
        assert outcome.accepted, outcome
        await until(lambda: all(one.store.receipt(identifier) is not None for one in self.net.up()))
        receipt = self.net.nodes[node].store.receipt(identifier)
        assert receipt is not None
        assert not receipt.reason, receipt

    async def found(self) -> None:
        """Register all institutions, a patient and a reader, and write one record."""
        for member in MEMBERS:
            await self.commit(member, RegisterInstitution(member.name, "AT", member.public.reencryption_key))
        for patient in (MARIA, READER):
            await self.commit(MEMBERS[0], registration(CHAIN, patient, MEMBERS[0].address, 10**6))
        await self.write(BUNDLE)

    async def write(self, bundle: bytes) -> None:
        """Write a record of the patient's."""
        sealed = seal(bundle, MARIA.public.reencryption_key)
        await self.net.nodes[0].service.put_blob(sealed.blob)
        self.blobs.append(sealed.blob)
        (body,) = chain_records(
            views.patient_at(self.store, MARIA.address), [fresh_envelope(MEMBERS[0].address, sealed)]
        )
        await self.commit(MEMBERS[0], body)

    async def grant(
        self, proxies: list[Identity], until_ms: int | None = None, grantee: Identity = READER
    ) -> PreparedGrant:
        """Commit a grant by way of proxies, two of which are needed; nothing is delivered."""
        choice = GrantChoice(
            patient=MARIA.address,
            generation=0,
            grantee=grantee.address,
            receiving_key=grantee.public.reencryption_key,
            records=None,
            purposes=("TREAT",),
            from_ms=now_ms() - 60_000,
            until_ms=until_ms or now_ms() + 3_600_000,
            threshold=2,
            proxies=tuple(proxy.address for proxy in proxies),
        )
        prepared = prepare_grant(MARIA.reencryption, MARIA.signing, choice)
        await self.commit(MARIA, GrantAccess(prepared.terms))
        return prepared

    def sealed(self, prepared: PreparedGrant) -> list[bytes]:
        """Return the sealed fragments of a grant, in the order of its proxies."""
        keys = {member.address: member.public.reencryption_key for member in MEMBERS}
        return [prepared.seal(proxy, keys[proxy]) for proxy in prepared.terms.proxies]

    async def deliver(self, prepared: PreparedGrant, cut_off: Container[bytes] = ()) -> dict[bytes, str]:
        """Bring the fragments to their proxies; returns the reasons. Whoever is not cut off is waited for."""
        while True:
            delivered = await self.net.nodes[0].service.proxying.deliver(self.sealed(prepared))
            reasons = {proxy: answer.reason for proxy, answer in delivered}
            if not _have_to_catch_up(reasons, cut_off):
                return reasons
            await trio.sleep(0.05)

    async def revoke(self, prepared: PreparedGrant) -> None:
        """Revoke a grant."""
        await self.commit(MARIA, RevokeAccess(prepared.grant_id))

    def request(self, prepared: PreparedGrant, identity: Identity = READER, purpose: str = "TREAT") -> SignedRequest:
        """Return a fresh request for the first record."""
        capsule = parse_blob(self.blobs[0]).capsule
        return sign_request(
            CHAIN,
            identity.signing,
            grant_id=prepared.grant_id,
            purpose=purpose,
            records=[(0, capsule)],
            issued_ms=now_ms(),
            nonce=secrets.token_bytes(NONCE_BYTES),
        )

    async def read(
        self, prepared: PreparedGrant, identity: Identity = READER, node: int = 0, cut_off: Container[bytes] = ()
    ) -> tuple[bytes | None, dict[bytes, str], list[bytes]]:
        """Ask proxies as a reader does; returns the bundle if enough helped, refusals by proxy, and proxies that failed.

        On a loaded machine a node is behind now and then: whoever is not cut off is waited for.
        """
        while True:
            await until(
                lambda: all(one.identity.address in cut_off or not one.service._is_behind() for one in self.net.up())
            )
            read = await self._read_once(prepared, identity, node)
            if not _have_to_catch_up(read[1], cut_off):
                return read

    async def _read_once(
        self, prepared: PreparedGrant, identity: Identity, node: int
    ) -> tuple[bytes | None, dict[bytes, str], list[bytes]]:
        signed = self.request(prepared, identity)
        grant = self.state_of(prepared)
        collection = Collection(
            CHAIN,
            signed,
            grant,
            MARIA.public.reencryption_key,
            {member.address: member.public.public_key for member in MEMBERS},
        )
        while not collection.is_complete() and (wanted := collection.ask()):
            for proxy, answer in await self.net.nodes[node].service.proxying.ask_proxies(encode(signed), wanted):
                if answer.reason:
                    collection.fail(proxy, answer.reason)
                else:
                    collection.add(proxy, answer.body)
        bundle = None
        if collection.is_complete():
            bundle = open_shared(parse_blob(self.blobs[0]), identity.reencryption, collection.fragments(0))
        refusals = {proxy: reason.value for proxy, reason in collection.refusals.items()}
        return bundle, refusals, [fault.proxy for fault in collection.faults]

    def state_of(self, prepared: PreparedGrant) -> Grant:
        """Return a grant as the first node has it."""
        return queries.grant(self.store, prepared.grant_id)

    async def label(self, *, may_erase: bool) -> None:
        """Label the first record."""
        record = queries.record(self.store, MARIA.address, 0)
        permission = permission_for(
            record,
            institution=MEMBERS[0].address,
            status="entered-in-error",
            label="wrong-patient",
            replacement=None,
            may_erase=may_erase,
            expiry_height=50_000,
        )
        document = permit(CHAIN, MARIA.signing, permission, MARIA.chameleon_secret, MEMBERS[0].public.reencryption_key)
        opened = open_permission(CHAIN, document, MEMBERS[0].reencryption)
        body: LabelRecord = build_label(opened, record, MARIA.public.chameleon_key, 1, PROVER)
        await self.commit(MEMBERS[0], body)


def _have_to_catch_up(reasons: Mapping[bytes, str], cut_off: Container[bytes]) -> bool:
    return any(reason == "catching_up" and proxy not in cut_off for proxy, reason in reasons.items())


def confirmations(net: Net, kind: type) -> int:
    """Count the committed transactions of a kind."""
    store = net.nodes[0].store
    return sum(
        isinstance(check_shape(raw, CHAIN).transaction.body, kind)
        for raw in itertools.chain.from_iterable(
            raws for height in range(1, store.head().height + 1) for _, raws in views.batches_at(store, height)
        )
    )
