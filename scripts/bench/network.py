# SPDX-License-Identifier: GPL-3.0-or-later
"""A local network prepared for load: funded senders, institutions and patients, and the questions a benchmark asks it."""

import secrets
import time
from dataclasses import dataclass, field

from ledger.bodies import Body, Transfer
from ledger.crypto.hashing import ZERO_DIGEST
from ledger.crypto.keys import PrivateKey
from ledger.patients import PatientKeyblock, patient_keyblock_hash
from ledger.transactions import sign_transaction
from node.actions import Actor, network_rules, submit_and_wait
from node.devnet import Devnet
from node.identity import Identity

FUNDS_MICROCREDIT = 1_000_000_000
EXPIRY_HEIGHT = 9_000
"""Beyond what a benchmark reaches; within the network's bound from height 0."""
SETTLE_S = 60.0


@dataclass
class Sender:
    """An account that signs in advance."""

    key: PrivateKey
    """Its key."""
    nonce: int = 0
    """Nonce of its next transaction."""


@dataclass
class PatientChain:
    """The end of a patient's chain as the benchmark will have extended it."""

    address: bytes
    """The patient's address."""
    keyblock: PatientKeyblock
    """The registration."""
    last: bytes = ZERO_DIGEST
    """Identifier of the newest record."""
    count: int = 0
    """Number of records."""


@dataclass
class Bench:
    """A running devnet and who acts on it, by node."""

    devnet: Devnet
    """The network."""
    senders: list[list[Sender]] = field(default_factory=list)
    """Funded accounts."""
    institutions: list[Sender] = field(default_factory=list)
    """Registered institutions."""
    patients: list[list[PatientChain]] = field(default_factory=list)
    """Registered patients."""

    @property
    def urls(self) -> tuple[str, ...]:
        """Bases of the nodes' APIs."""
        return self.devnet.urls

    def pids(self) -> list[int]:
        """Return the nodes' processes."""
        pids = [self.devnet.pid(index) for index in range(len(self.devnet))]
        return [pid for pid in pids if pid is not None]

    def prepare(self, senders: int, patients: int) -> None:
        """Fund senders, register one institution and some patients at each node."""
        with self.devnet.clients() as clients:
            rules = network_rules(clients[0])
            self._chain_id = rules.chain_id
            for index, client in enumerate(clients):
                owner = self.devnet.identity(index)
                actor = Actor(client, owner, rules=rules)
                actor.register_institution(f"Hospital {index + 1}", "DE")
                keys = [Sender(PrivateKey(secrets.token_bytes(32))) for _ in range(senders)]
                submit_and_wait(client, actor.sign([Transfer(s.key.address, FUNDS_MICROCREDIT) for s in keys]))
                people = [Identity.generate(f"p{number}") for number in range(patients)]
                bodies = [actor.patient_body(person, 0) for person in people]
                submit_and_wait(client, actor.sign(bodies))
                self.senders.append(keys)
                self.patients.append(
                    [
                        PatientChain(p.address, b.keyblock, patient_keyblock_hash(b.keyblock))
                        for p, b in zip(people, bodies, strict=True)
                    ]
                )
                self.institutions.append(Sender(owner.signing, client.account(owner.address).nonce))

    def sign(self, sender: Sender, body: Body) -> bytes:
        """Return the sender's next transaction."""
        raw = sign_transaction(
            self._chain_id, sender.key, nonce=sender.nonce, fee_microcredit=10, expiry_height=EXPIRY_HEIGHT, body=body
        )
        sender.nonce += 1
        return raw

    def unloaded_latencies_ms(self, samples: int) -> list[float]:
        """Commit transactions one after another, each through the next node; milliseconds as the client sees them, ascending."""
        latencies = []
        with self.devnet.clients() as clients:
            for number in range(samples):
                node = number % len(clients)
                raw = self.sign(self.senders[node][0], Transfer(self.senders[node][1].key.address, 1))
                began_s = time.perf_counter()
                outcome = clients[node].submit([raw], wait_ms=10_000)[0]
                latencies.append((time.perf_counter() - began_s) * 1000)
                assert outcome.receipt is not None, f"not committed: {outcome}"
                assert not outcome.receipt.reason, f"rejected: {outcome}"
        return sorted(latencies)

    def agreed(self) -> bool:
        """Wait until the network is quiet and tell whether all nodes are at one state root."""
        deadline_s = time.monotonic() + SETTLE_S
        with self.devnet.clients() as clients:
            while time.monotonic() < deadline_s:
                states = [client.state() for client in clients]
                if len({state.height for state in states}) == 1:
                    return len({(state.state_root, state.state_digest) for state in states}) == 1
                time.sleep(0.2)
        return False
