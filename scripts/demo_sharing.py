# SPDX-License-Identifier: GPL-3.0-or-later
"""The demo's part of the patients: a grant, a reader, a revocation, a label, who has asked, and evidence of all of it."""

import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

from contracts.reading import Reader
from contracts.shipped import MACHINES
from node.access_check import CheckedEntry
from node.actions import Actor, NetworkRules, WrittenRecord
from node.api import sharing_models as answers
from node.client import NodeClient
from node.clock import now_ms
from node.devnet import Devnet
from node.identity import Identity
from node.label_actions import apply_label, ask_for_label, open_label_request, permit_label, prover_of, record_of
from node.proving import NothingPinned, ProvedState, export
from node.sharing_actions import Given, LogOfProxy, NotShared, Reading, choose_proxies, give, read_shared, revoke
from records.access_entries import answer_of, is_own_read
from records.claims import AccessClaim, Claim, EvidenceRefused, GrantClaim, HistoryClaim, LabelClaim, RevocationClaim
from records.evidence import Findings, verify
from records.fhir import validate_bundle
from records.grants import GrantChoice
from scripts.demo_access import AccessContract, place_of
from scripts.demo_epochs import PATIENCE_S, DemoFailure, leader_index

AUTHOR = 0
"""Hospital A: it wrote the patient's record."""
PROXIES, THRESHOLD = 3, 2
"""n proxies hold a key fragment each; m of them must re-encrypt."""
PURPOSE, OTHER_PURPOSE = "TREAT", "HMARKT"
"""Treatment is granted; marketing is not."""
KEYBLOCKS_S = 300.0
"""Two keyblocks take half a minute on average; luck, or a slow machine, may make it several."""
ACCESSES_S = 60.0
"""Entries wait for their operator's next batch, a second; and for a node that was away."""
TRANSIENT = ("catching_up", "busy")
"""Reasons that pass by themselves."""
GRANTED_MS = 3_600_000
CLOCKS_MS = 60_000
"""A grant begins a minute ago, so that no proxy's clock is before it."""


def until(reached: Callable[[], object], what: str, patience_s: float = PATIENCE_S) -> None:
    """Wait until something holds. Raises `DemoFailure`."""
    deadline_s = time.monotonic() + patience_s
    while not reached():
        if time.monotonic() > deadline_s:
            raise DemoFailure(f"{what}: not within {patience_s:g} s")
        time.sleep(0.1)


@dataclass
class Sharing:
    """The story of one patient's record."""

    devnet: Devnet
    """The network."""
    clients: list[NodeClient]
    """One for each node."""
    rules: NetworkRules
    """What signing takes."""
    console: Console
    """Where the story is told."""
    titles: Sequence[str]
    """Names of the hospitals, by their nodes."""
    patient: Identity
    """The patient's keys."""
    bundle: bytes
    """The record that hospital A wrote first."""
    reader: int = -1
    """Hospital B, by its node."""
    given: Given | None = None
    """The grant."""
    facts: list[tuple[str, str]] = field(default_factory=list)
    """Lines of the summary."""

    def __post_init__(self) -> None:
        """Take the console over."""
        self.access = AccessContract(self.console)
        """The contract that all accesses are logged in."""

    # ------------------------------------------------------------------ while all nodes run

    def grant(self) -> None:
        """The patient lets hospital B read all records, through the three other hospitals."""
        away = leader_index(self.devnet, self.clients[AUTHOR])
        # B's own node and the patient's way in stay up when the leader is killed.
        self.reader = next(index for index in range(1, len(self.clients)) if index != away)
        client, reader = self.clients[AUTHOR], self._identity(self.reader)
        operator = Actor(self.clients[self.reader], reader, rules=self.rules)
        writers = [self._identity(index).address for index in range(len(self.clients))]
        self.access.open(operator, self._title(self.reader), writers)
        choice = GrantChoice(
            patient=self.patient.address,
            generation=0,
            grantee=reader.address,
            receiving_key=client.institution(reader.address).encryption_key,
            records=None,
            purposes=(PURPOSE,),
            from_ms=now_ms() - CLOCKS_MS,
            until_ms=now_ms() + GRANTED_MS,
            threshold=THRESHOLD,
            proxies=choose_proxies(client, self.patient.address, reader.address, PROXIES),
        )
        self.given = give(self._patient_at(AUTHOR), self.patient.reencryption, choice)
        failed = [delivery for delivery in self.given.deliveries if delivery.reason]
        if failed:
            raise DemoFailure(f"proxy {failed[0].proxy.hex()} has no key fragment: {failed[0].reason}")
        self._good(f"the patient grants {self._title(self.reader)} to read for treatment, by way of {PROXIES} proxies")

    def victim(self) -> int:
        """Return the leader as soon as it is a proxy: the reader's own node stays up."""
        found = self.reader
        deadline_s = time.monotonic() + PATIENCE_S
        while found == self.reader:
            if time.monotonic() > deadline_s:
                raise DemoFailure(f"{self._title(self.reader)} leads all the time")
            time.sleep(0.05)
            found = leader_index(self.devnet, self.clients[self.reader])
        return found

    # ------------------------------------------------------------------ while one proxy's node is down

    def read_and_revoke(self, away: int) -> None:
        """Hospital B reads through the two proxies that are up; then the patient takes the grant back."""
        given, reader = self._given, Actor(self.clients[self.reader], self._identity(self.reader), rules=self.rules)
        began_s = time.monotonic()
        reading = self._read(reader, PURPOSE)
        took_s = time.monotonic() - began_s
        if reading.records[0].bundle != self.bundle or len(reading.collection.helpers) != THRESHOLD:
            raise DemoFailure("what hospital B read is not what hospital A wrote")
        helpers = " and ".join(self._name_of(proxy) for proxy in reading.collection.helpers)
        self._good(
            f"{self._title(self.reader)} reads it byte for byte through {helpers} while {self._node(away)} is down ({took_s:.1f} s)"
        )
        self.facts.append(("shared", f"read through {THRESHOLD} of {PROXIES} proxies, one of them down"))
        self._refused(reader, OTHER_PURPOSE, "wrong_purpose", "for marketing")
        near = next(index for index in (AUTHOR, self.reader) if index != away)
        height = revoke(self._patient_at(near), given.grant_id).height
        # Each proxy judges by what it has committed itself.
        up = [client for index, client in enumerate(self.clients) if index != away]
        until(lambda: all(client.status().height >= height for client in up), "all nodes have the revocation")
        self._refused(reader, PURPOSE, "revoked", "after the revocation")
        until(lambda: len(self._deleted(near)) == PROXIES - 1, "the proxies that are up confirm their deletion")
        self._good(f"{PROXIES - 1} of {PROXIES} proxies have deleted their key fragment and confirmed it on the chain")

    def _refused(self, reader: Actor, purpose: str, reason: str, when: str) -> None:
        try:
            self._read(reader, purpose)
        except NotShared as error:
            if error.reason != reason:
                raise DemoFailure(f"refused as {error.reason}, not as {reason}: {error}") from error
        else:
            raise DemoFailure(f"hospital B can read {when}")
        self._good(f"{self._title(self.reader)} asks {when} and is refused: [yellow]{reason}[/]")
        self.facts.append((f"asked {when}", f"refused: {reason}"))

    def _read(self, reader: Actor, purpose: str) -> Reading:
        deadline_s = time.monotonic() + PATIENCE_S
        while True:
            try:
                return read_shared(reader, self._given.grant_id, [0], purpose)
            except NotShared as error:
                # A leader was just killed: who has not heard of its successor yet serves nobody.
                if error.reason not in TRANSIENT or time.monotonic() > deadline_s:
                    raise
                time.sleep(0.2)

    # ------------------------------------------------------------------ when all nodes run again

    def confirm(self, back: int) -> None:
        """The proxy that was away deletes and confirms, too; then nobody holds a fragment."""
        until(lambda: len(self._deleted(back)) == PROXIES, f"{self._node(back)} confirms its deletion")
        if not self._deleted(back).issuperset({self._identity(back).address}):
            raise DemoFailure(f"{self._node(back)} is no proxy that has confirmed")
        self._good(f"{self._node(back)}, which was away, has deleted and confirmed as well: {PROXIES} of {PROXIES}")
        self.facts.append(("revoked", f"{PROXIES} of {PROXIES} proxies confirmed on the chain that they have deleted"))

    def label(self) -> None:
        """Hospital A corrects a misdiagnosis: a new record, and a label on the old one, with the patient's permission."""
        client = self.clients[AUTHOR]
        hospital = Actor(client, self._identity(AUTHOR), rules=self.rules)
        written = hospital.put_record(self.patient.address, _corrected(self.bundle))
        before = client.record(self.patient.address, 0)
        hashes = self._block_hashes(before.committed_height)
        request = ask_for_label(
            hospital,
            self.patient.address,
            0,
            status="entered-in-error",
            label="misdiagnosis",
            replacement=written.sequence,
            note="The corrected record is written; may we mark this one?",
        )
        patient = self._patient_at(AUTHOR)
        permission = permit_label(patient, open_label_request(client, self.rules.chain_id, request))
        committed = apply_label(hospital, permission, prover_of(self.rules.genesis))
        self._check_label(before_id=before.record_id, written=written, hashes=hashes, height=committed.height)
        self._good("a misdiagnosis is labelled [yellow]entered-in-error[/], with the patient's permission")
        self._dim(
            f"record {before.record_id.hex()[:16]}…, block {hashes[-1].hex()[:16]}… at height {before.committed_height}: both as before"
        )
        self.facts.append(("labelled", "entered-in-error; record identifier and all block hashes unchanged"))

    def _check_label(self, *, before_id: bytes, written: WrittenRecord, hashes: Sequence[bytes], height: int) -> None:
        until(lambda: all(client.status().height >= height for client in self.clients), "all nodes have the label")
        for client in self.clients:
            after = record_of(client.record(self.patient.address, 0))
            if (after.record_id, after.label_count, after.envelope.status) != (before_id, 1, "entered-in-error"):
                raise DemoFailure(f"{client.url} does not show the label, or another record")
            if after.envelope.replaced_by != written.record_id:
                raise DemoFailure(f"{client.url} does not name the corrected record")
            if [client.block(at).block_hash for at in range(len(hashes))] != hashes:
                raise DemoFailure(f"block hashes at {client.url} have changed")

    def look_back(self, directory: Path) -> None:
        """The patient sees who has asked; whatever happened is proved to somebody who has one hash and no network."""
        patient = self._patient_at(AUTHOR)
        until(lambda: self.access.is_complete(patient), "all accesses stand in the contract", ACCESSES_S)
        found = self.access.look(patient)
        self._check_logs(found.logs)
        self.console.print(self._asked(found.checked.entries))
        self.access.tell(found)
        self.facts += self.access.facts
        entries = sorted(
            (signed for log in found.logs for signed in log.entries if not is_own_read(signed.entry)),
            key=lambda one: (one.entry.proxy, one.entry.number),
        )
        grant_id, address = self._given.grant_id, self.patient.address
        claims: dict[str, Claim] = {
            "grant": GrantClaim(grant_id),
            "access": AccessClaim(grant_id, tuple(entries)),
            "revocation": RevocationClaim(grant_id),
            "label": LabelClaim(address, 0),
            "history": HistoryClaim(address),
        }
        # Asked for before the height: what is final now is final at any keyblock that proves this height.
        logged = self.access.claim(patient)
        if logged is not None:
            claims["access-log"] = logged
        height = self.clients[AUTHOR].status().height
        with self.console.status("waiting for a keyblock that proves it …"):
            until(lambda: self._is_proved(height), "a keyblock that proves it", KEYBLOCKS_S)
            files = {name: export(self.clients[AUTHOR], claim) for name, claim in claims.items()}
        for name, (raw, made) in files.items():
            (directory / f"{name}.evidence").write_bytes(raw)
            self._verify(raw, made)
        sizes = sorted(len(raw) / 1000 for raw, _ in files.values())
        self._good(f"evidence verifies offline, against a keyblock's hash alone: {', '.join(files)}")
        self._dim(f"{len(files)} files of {sizes[0]:.1f} to {sizes[-1]:.1f} KB; with one bit changed they are refused")
        self.facts.append(("evidence", f"{len(files)} files verify offline; with one bit changed they do not"))

    def _is_proved(self, height: int) -> bool:
        """Tell whether the newest keyblock proves what was committed at a height; there may be no keyblock at all yet."""
        try:
            return ProvedState(self.clients[AUTHOR]).height >= height
        except NothingPinned:
            return False

    def _verify(self, raw: bytes, made: Findings) -> None:
        """Check a file as somebody else does: with the hash that another hospital's node tells, and nothing of ours."""
        other = self.clients[self.reader]
        until(lambda: other.epoch().number > made.epoch, "another node knows the keyblock")
        trusted = other.epoch(made.epoch + 1).keyblock
        reader = Reader(MACHINES)
        if verify(raw, trusted, reader) != made:
            raise DemoFailure(f"the evidence of the {made.claim} proves something else")
        middle = len(raw) // 2
        forged = raw[:middle] + bytes([raw[middle] ^ 1]) + raw[middle + 1 :]
        for attempt, keyblock in ((forged, trusted), (raw, bytes(32))):
            try:
                verify(attempt, keyblock, reader)
            except EvidenceRefused:
                continue
            raise DemoFailure(f"forged evidence of the {made.claim} verifies")

    # ------------------------------------------------------------------ who has asked

    def _check_logs(self, logs: Sequence[LogOfProxy]) -> None:
        for log in logs:
            if log.trouble:
                raise DemoFailure(f"the log of {self._name_of(log.proxy)} cannot be read: {log.trouble}")
        given = (signed.entry.reason for log in logs for signed in log.entries)
        reasons = Counter(reason for reason in given if reason not in TRANSIENT)
        # The reader's own node has noted the reading as well.
        wanted = {None: THRESHOLD + 1, "wrong_purpose": PROXIES - 1, "revoked": PROXIES - 1}
        if reasons != wanted:
            raise DemoFailure(f"the access logs say {dict(reasons)}, not {wanted}")

    def _asked(self, entries: Sequence[CheckedEntry]) -> Table:
        table = Table(title="Who has asked for the patient's record", title_justify="left")
        for title in ("logged by", "who asked", "for", "answer", "in the contract"):
            table.add_column(title)
        for one in sorted(entries, key=lambda one: (one.signed.entry.proxy, one.signed.entry.number)):
            entry = one.signed.entry
            is_reader = entry.requester == self._identity(self.reader).public.public_key
            who = self._title(self.reader) if is_reader else entry.requester.hex()[:16]
            table.add_row(self._name_of(entry.proxy), who, entry.purpose, answer_of(entry), place_of(one))
        return table

    # ------------------------------------------------------------------ small things

    @property
    def _given(self) -> Given:
        assert self.given is not None, "the grant comes first"
        return self.given

    def _grant_at(self, node: int) -> answers.Grant:
        return self.clients[node].consent.grant(self._given.grant_id)

    def _deleted(self, node: int) -> set[bytes]:
        return {proxy.address for proxy in self._grant_at(node).proxies if proxy.deleted_height is not None}

    def _block_hashes(self, height: int) -> list[bytes]:
        return [self.clients[AUTHOR].block(at).block_hash for at in range(height + 1)]

    def _patient_at(self, node: int) -> Actor:
        return Actor(self.clients[node], self.patient, rules=self.rules)

    def _identity(self, index: int) -> Identity:
        return self.devnet.identity(index)

    def _title(self, index: int) -> str:
        return self.titles[index]

    def _node(self, index: int) -> str:
        return self.devnet.manifest.nodes[index].name

    def _name_of(self, address: bytes) -> str:
        return next(entry.name for entry in self.devnet.manifest.nodes if entry.address == address.hex())

    def _good(self, text: str) -> None:
        self.console.print(f"[green]✓[/] {text}", highlight=False)

    def _dim(self, text: str) -> None:
        self.console.print(f"  [dim]{text}[/]", highlight=False)


def _corrected(bundle: bytes) -> bytes:
    """Return the bundle without its first condition: the misdiagnosis."""
    content = json.loads(bundle)
    kinds = [entry["resource"]["resourceType"] for entry in content["entry"]]
    del content["entry"][kinds.index("Condition")]
    raw = json.dumps(content, ensure_ascii=False).encode()
    validate_bundle(raw)
    assert hashlib.sha256(raw).digest() != hashlib.sha256(bundle).digest()
    return raw
