# SPDX-License-Identifier: GPL-3.0-or-later
"""A patient's whole story on four real nodes whose wires are tapped: written, granted, read, revoked while a proxy is down, labelled."""

import gzip
import secrets
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from contracts.machines.access_log import AccessLogParameters
from ledger.bodies import GrantAccess
from ledger.codec import encode
from ledger.sharing import Grant
from node.actions import Actor, NetworkRules, network_rules
from node.client import NodeClient
from node.clock import now_ms
from node.contract_actions import machine_named, minimum_bond, open_contract
from node.devnet import Devnet, _started
from node.guardian_actions import appoint
from node.http_client import ApiError, NodeUnreachable
from node.identity import Identity
from node.label_actions import apply_label, ask_for_label, open_label_request, permit_label, prover_of
from node.record_checks import fetch_blob
from node.sharing_actions import grant_of, hand_out, read_shared, revoke
from records.answers import ProxyAnswer, decode_answer
from records.fragment_store import FragmentStore
from records.grants import GrantChoice, PreparedGrant, prepare_grant
from records.requests import NONCE_BYTES, sign_request
from tests.system.kit import PATIENCE_S, ROOT, until

TAPPED = Path(__file__).with_name("tapped_node.py")
FILES = ("p01", "n01")
BUNDLES = tuple(
    gzip.decompress((ROOT / "scripts" / "data" / "fhir" / f"{name}.json.gz").read_bytes()) for name in FILES
)
AUTHOR, READER, PROXY, AWAY = range(4)
"""What the nodes' institutions are to the patient; the author is a proxy, too, and the last one is killed."""
PROXIES, THRESHOLD = (AUTHOR, PROXY, AWAY), 2


class TappedDevnet(Devnet):
    """A devnet of nodes that write down all that they hear and say, in `taps` beside their directory."""

    @property
    def taps(self) -> Path:
        """Folder with one folder of captures for each node."""
        return self.directory.parent / "taps"

    def tap(self, index: int) -> Path:
        """Return the captures of a node."""
        return self.taps / self.manifest.nodes[index].name

    def disk(self, index: int) -> Path:
        """Return the folder of all that a node has written: store, blobs, fragments, access log and log."""
        return Path(self.manifest.nodes[index].data_dir)

    def start_node(self, index: int) -> int:
        """Start one tapped node if it does not run."""
        arguments = [sys.executable, str(TAPPED), str(self.disk(index)), str(self.tap(index))]
        return _started(self._keepers[index], arguments, self.disk(index))


@dataclass
class Told:
    """What has happened."""

    network: TappedDevnet
    """The network, which is up."""
    rules: NetworkRules
    """What signing takes."""
    patient: Identity
    """The patient; the second one is nobody's friend and was granted nothing."""
    living: PreparedGrant
    """A grant that lasts, with its fragments in clear."""
    revoked: PreparedGrant
    """A grant that was revoked while one of its proxies was down."""
    sealed: tuple[bytes, ...]
    """All sealed fragments as they were handed to the first node."""
    contract_id: bytes
    """The access-log contract, which the author operates."""
    answers_since_return: list[ProxyAnswer] = field(default_factory=list)
    """What the proxy that was down has answered from its start on, oldest first, for the revoked grant."""
    block_hashes: list[list[bytes]] = field(default_factory=list)
    """By node: hashes of all microblocks before the label."""
    record_ids: list[list[bytes]] = field(default_factory=list)
    """By node: identifiers of the patient's records before the label."""

    def actor(self, index: int, node: int | None = None) -> Actor:
        """Return an institution at a node; the caller closes the client."""
        client = self.network.client(index if node is None else node)
        return Actor(client, self.network.identity(index), rules=self.rules)

    def grant(self, prepared: PreparedGrant) -> Grant:
        """Return a grant as the chain has it now."""
        with self.network.client(AUTHOR) as client:
            return grant_of(client.consent.grant(prepared.grant_id))


def tell(network: TappedDevnet) -> Told:
    """Play the story up to the label."""
    with network.clients() as clients:
        rules = network_rules(clients[0])
        hospitals = [network.identity(index) for index in range(len(network))]
        for index, hospital in enumerate(hospitals):
            Actor(clients[index], hospital, rules=rules).register_institution(f"Hospital {index}", "AT")
        patient = Identity.generate("Maria")
        author = Actor(clients[AUTHOR], hospitals[AUTHOR], rules=rules)
        contract_id = _open_access_log(author, hospitals)
        author.register_patient(patient, 10**6)
        for bundle in BUNDLES:
            author.put_record(patient.address, bundle)
        maria = Actor(clients[AUTHOR], patient, rules=rules)
        # The backup of the patient's keys goes to the nodes, too: encrypted, its key in shares.
        appoint(maria, [hospitals[READER].address, hospitals[PROXY].address, hospitals[AWAY].address], 2)
        living, first = _give(maria, hospitals)
        revoked, second = _give(maria, hospitals)
        story = Told(network, rules, patient, living, revoked, first + second, contract_id)
        reader = Actor(clients[READER], hospitals[READER], rules=rules)
        for prepared in (living, revoked):
            reading = read_shared(reader, prepared.grant_id, [0, 1], "TREAT")
            assert [record.bundle for record in reading.records] == list(BUNDLES)
        _revoke_while_away(story, clients, maria)
        network.wait_connected(timeout_s=2 * PATIENCE_S)
        until(lambda: len({client.status().height for client in clients}) == 1, "nodes at one height")
        height = clients[0].status().height
        for client in clients:
            story.block_hashes.append([client.block(at).block_hash for at in range(height + 1)])
            story.record_ids.append([record.record_id for record in client.records(patient.address)])
        return story


def _open_access_log(operator: Actor, hospitals: list[Identity]) -> bytes:
    """Open the contract that all hospitals log accesses in."""
    parameters = AccessLogParameters(tuple(sorted(hospital.address for hospital in hospitals)))
    machine, bond = machine_named("access_log"), minimum_bond(operator)
    return open_contract(operator, machine, encode(parameters), bond, 2 * PATIENCE_S).contract_id


def _give(maria: Actor, hospitals: list[Identity]) -> tuple[PreparedGrant, tuple[bytes, ...]]:
    """Give a grant as `node.sharing_actions.give` does, and keep the fragments, which it never shows."""
    client, reader = maria.client, hospitals[READER]
    choice = GrantChoice(
        patient=maria.identity.address,
        generation=0,
        grantee=reader.address,
        receiving_key=reader.public.reencryption_key,
        records=None,
        purposes=("TREAT",),
        from_ms=now_ms() - 60_000,
        until_ms=now_ms() + 24 * 3_600_000,
        threshold=THRESHOLD,
        proxies=tuple(hospitals[index].address for index in PROXIES),
    )
    prepared = prepare_grant(maria.identity.reencryption, maria.identity.signing, choice)
    sealed = tuple(
        prepared.seal(hospitals[index].address, hospitals[index].public.reencryption_key) for index in PROXIES
    )
    maria.commit(GrantAccess(prepared.terms))
    keys = {hospitals[index].address: hospitals[index].public.public_key for index in PROXIES}
    deliveries = hand_out(client, maria.rules.chain_id, prepared, sealed, keys)
    assert [delivery.reason for delivery in deliveries] == ["", "", ""], deliveries
    return prepared, sealed


def _revoke_while_away(story: Told, clients: list[NodeClient], maria: Actor) -> None:
    """Kill a proxy, revoke, start it again, and ask it from its first moment on until it has confirmed."""
    network = story.network
    away = network.identity(AWAY).address
    network.kill(AWAY)
    revoke(maria, story.revoked.grant_id)
    up = {network.identity(index).address for index in PROXIES if index != AWAY}
    until(lambda: _deleted(clients[AUTHOR], story.revoked) == up, "the proxies that are up confirm their deletion")
    network.start_node(AWAY)

    def confirmed() -> bool:
        for node in (AWAY, READER):
            answer = ask(story, clients[node], AWAY, story.revoked)
            if answer is not None:
                story.answers_since_return.append(answer)
        return away in _deleted(clients[AUTHOR], story.revoked) and bool(story.answers_since_return)

    until(confirmed, "the proxy that was down confirms its deletion", 2 * PATIENCE_S)


def _deleted(client: NodeClient, prepared: PreparedGrant) -> set[bytes]:
    grant = client.consent.grant(prepared.grant_id)
    return {proxy.address for proxy in grant.proxies if proxy.deleted_height is not None}


def ask(story: Told, client: NodeClient, proxy: int, prepared: PreparedGrant) -> ProxyAnswer | None:
    """Ask one proxy for a record, as the reader, through some node; None when no answer comes."""
    with story.network.client(AUTHOR) as author:
        blob = fetch_blob(author, author.record(story.patient.address, 0))
    signed = sign_request(
        story.rules.chain_id,
        story.network.identity(READER).signing,
        grant_id=prepared.grant_id,
        purpose="TREAT",
        records=[(0, blob.capsule)],
        issued_ms=now_ms(),
        nonce=secrets.token_bytes(NONCE_BYTES),
    )
    try:
        answer = client.consent.ask_proxy(encode(signed), story.network.identity(proxy).address)
    except (NodeUnreachable, ApiError):
        return None
    return None if answer.reason else decode_answer(answer.body)


def label(story: Told) -> bytes:
    """Label the first record with the patient's permission; return the permission document."""
    with story.network.client(AUTHOR) as client:
        hospital = Actor(client, story.network.identity(AUTHOR), rules=story.rules)
        request = ask_for_label(
            hospital, story.patient.address, 0, status="entered-in-error", label="misdiagnosis", replacement=1
        )
        maria = Actor(client, story.patient, rules=story.rules)
        permission = permit_label(maria, open_label_request(client, story.rules.chain_id, request))
        apply_label(hospital, permission, prover_of(story.rules.genesis))
        return permission


@contextmanager
def fragments_at(story: Told, index: int, directory: Path) -> Iterator[FragmentStore]:
    """Open what a node keeps of key fragments, with its own key: a copy, for the node has the file locked."""
    copied = directory / f"fragments-{index}.sqlite"
    shutil.copyfile(story.network.disk(index) / "sharing" / "fragments.sqlite", copied)
    secret = story.network.identity(index).fragments_secret
    with FragmentStore(copied, chain_id=story.rules.chain_id, key=secret) as store:
        yield store
