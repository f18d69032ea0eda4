# SPDX-License-Identifier: GPL-3.0-or-later
"""The judge of what is committed: one chain, one state, one committee per epoch, as `simulation.reference` computes them anew.

What the first honest replica commits at a height is recomputed; what the others commit there must be the same.
"""

from collections.abc import Mapping, Sequence
from fractions import Fraction

from consensus.committee import CommitteeMember
from consensus.epoch import Epoch
from consensus.events import Commit
from consensus.executor import Done
from ledger.blocks import SignedKeyblock, microblock_signing_digest
from ledger.codec import encode
from ledger.crypto.keys import address_of, verify
from ledger.genesis import Genesis
from ledger.miners import MinerHistory
from ledger.rules import REPUTATION_UNIT
from ledger.state import EPOCHS, MINERS, TALLIES, State
from ledger.state_tree import leaves_root, make_leaf, position_of
from ledger.store import Store
from ledger.transactions import CheckedTransaction
from simulation.accounts import Accounts
from simulation.reference import ReferenceChain
from simulation.reference_contracts import ReferenceContracts
from simulation.violation import require
from simulation.weighing import Weighing

EVERYTHING = 2**62
ERROR = Fraction(2, REPUTATION_UNIT)
"""What fixed point may cost a reputation (`consensus.reputation`, R2)."""


class ChainJudge:
    """Checks commits; raises `Violation`."""

    def __init__(self, genesis: Genesis, founding: Epoch, published: Mapping[bytes, bytes]) -> None:
        """`published` is the data of off-chain batches that honest disks hold, as it grows."""
        self.reference = ReferenceChain(genesis, founding.record.root_hash, founding.state_root)
        self._parameters = genesis.parameters
        self.contracts = ReferenceContracts(genesis, published)
        self._accounts = Accounts(genesis, self.contracts)
        self._chain: dict[int, tuple[bytes, bytes]] = {}
        self._epochs: dict[int, tuple[bytes, bytes]] = {}
        self._pinned: dict[bytes, SignedKeyblock] = {}
        self._weighings: dict[int, Weighing] = {}
        self._check_committee(founding)

    def committed(
        self, replica: int, store: Store, commit: Commit, transactions: Sequence[CheckedTransaction], done: Done
    ) -> None:
        """An honest replica has executed and stored a microblock."""
        block, digest = commit.signed.microblock, done.execution.state_digest
        height = block.header.height
        is_first = height not in self._chain
        known_hash, known_digest = self._chain.setdefault(height, (commit.block_hash, digest))
        require("I1", known_hash == commit.block_hash, f"replica {replica} commits another microblock at {height}")
        require("I6", known_digest == digest, f"replica {replica} has another state after height {height}")
        executed, stated = block.header.executed_height, block.header.state_digest
        known = self._chain[executed][1] if executed else store.state_digest(0)
        require("I6", stated == known, f"microblock {height} states another state after {executed} than there is")
        ends = block.keyblock is not None
        require("I3", ends == (done.epoch is not None), f"replica {replica}: epochs and pins differ at {height}")
        if is_first:
            self._recompute(store, commit, transactions, done)
        if done.epoch is not None:
            root = store.root_at(height) or b""
            facts = (root, encode(State(store).get(EPOCHS, done.epoch.number.to_bytes(8, "big"))))
            require("I6", root == done.epoch.state_root, f"replica {replica} has two state roots after {height}")
            same = self._epochs.setdefault(done.epoch.number, facts) == facts
            require("I6", same, f"replica {replica} has another state root or epoch after height {height}")

    def check_weight(self, replica: int, store: Store, commit: Commit, stated: int) -> None:
        """An honest replica states what its chain weighs after a microblock whose certificate is genuine."""
        rules, founding = self._parameters.weight, self.reference.epochs[0]
        weighing = self._weighings.setdefault(replica, Weighing(rules, founding.target))
        block = commit.signed.microblock
        weighing.certified(self.reference.epochs[block.header.epoch], commit.block.certificate)
        if block.keyblock is not None:
            weighing.pinned(int.from_bytes(block.keyblock.keyblock.target, "big"))
        wrong = weighing.differs(store, stated)
        require("weight", not wrong, f"replica {replica} after height {block.header.height}: {wrong}")

    def _recompute(self, store: Store, commit: Commit, transactions: Sequence[CheckedTransaction], done: Done) -> None:
        state, block = State(store), commit.signed.microblock
        height = block.header.height
        reasons = [receipt.reason for _, receipt in done.execution.receipts]
        time_ms = block.header.timestamp_ms
        applied = self._accounts.apply(height, time_ms, transactions, self.reference.miners.keys(), reasons)
        effective = [not reason for reason in reasons]
        require("I6", effective == applied.effective, f"receipts of {height}: {effective}, not {applied.effective}")
        signing = microblock_signing_digest(self.reference.chain_id, commit.block_hash)
        leader = next((m for m in self.reference.epoch.members if m.address == block.header.leader), None)
        signed = leader is not None and verify(leader.public_key, signing, commit.signed.signature)
        require("leader", signed, f"microblock {height} is not signed by its leader")
        wrong = self.reference.wrong_time(block.header)
        require("time", not wrong, wrong)
        wrong = self.reference.microblock(block, applied.fees, applied.offenders)
        require("leader", not wrong, wrong)
        if block.keyblock is not None and done.epoch is not None:
            self._pin(block.keyblock, commit.block_hash, done.epoch)
            self._check_state(store, done.epoch)
        wrong = self._accounts.differs(state)
        require("I7", not wrong, f"after height {height}: {wrong}")
        wrong = self.contracts.differs(state)
        require("I12", not wrong, f"after height {height}: {wrong}")

    def _pin(self, signed: SignedKeyblock, root_hash: bytes, epoch: Epoch) -> None:
        reference, before = self.reference, self.reference.epoch
        wrong = reference.wrong_keyblock(before, signed)
        require("I3", not wrong, f"epoch {epoch.number} begins with a keyblock, but {wrong}")
        first = self._pinned.setdefault(signed.keyblock.previous, signed)
        require("I3", first == signed, f"two keyblocks are pinned after {signed.keyblock.previous.hex()}")
        self._accounts.end_epoch(reference.payouts(), address_of(signed.keyblock.miner))
        reference.pin(signed, root_hash, epoch.state_root)
        facts, record = reference.epoch, epoch.record
        same = (record.keyblock, record.root_hash, record.root_round, int.from_bytes(record.target, "big"))
        expected = (facts.keyblock, facts.root_hash, facts.root_round, facts.target)
        require("I3", same == expected, f"epoch {epoch.number} has keyblock, root, round and target {same}")
        self._check_committee(epoch)

    def _check_state(self, store: Store, epoch: Epoch) -> None:
        """What the state says at the beginning of an epoch is what replicas that come later will go by."""
        leaves = sorted(make_leaf(position_of(key), value) for key, value in store.scan_state(b"", b"", EVERYTHING))
        root = leaves_root(leaves)
        require("I6", root == epoch.state_root, f"epoch {epoch.number} has the state root {epoch.state_root.hex()}")
        state = State(store)
        record = state.get(EPOCHS, epoch.number.to_bytes(8, "big"))
        require("I3", record == epoch.record, f"the state says of epoch {epoch.number}: {record}; it is {epoch.record}")
        known = {key for key, _ in state.entries(MINERS)}
        require("reputation", known == self.reference.miners.keys(), f"{len(known)} keys have a miner's history")
        for key, past in self.reference.miners.items():
            found = state.get(MINERS, key) or MinerHistory()
            told = (found.keyblocks, found.terms, found.microblocks, found.microblock_squares, found.is_honest)
            terms = past.terms
            done = (len(past.positions), len(terms), sum(terms), sum(m * m for m in terms), past.is_honest)
            require("reputation", told == done, f"the state says of {key.hex()}: {told}; it has done {done}")
        require("reputation", not list(state.entries(TALLIES)), f"epoch {epoch.number} begins with tallies of another")

    def _check_committee(self, epoch: Epoch) -> None:
        reference = self.reference
        nano = {key: epoch.reputation_of(key) for key in reference.miners}
        for key, stated in nano.items():
            exact = reference.reputation(key)
            close = abs(Fraction(stated, REPUTATION_UNIT) - exact) <= ERROR
            require("reputation", close, f"{key.hex()} has {stated}e-9 in epoch {epoch.number}, not {float(exact)}")
        seats = [(seat.public_key, seat.reputation_nano) for seat in epoch.record.seats]
        best = [(key, nano[key]) for key in reference.best(nano)]
        if not best:  # everybody was punished: the committee goes on
            best = [(member.public_key, member.reputation_nano) for member in reference.epochs[-2].members]
        require("committee", seats == best, f"the committee of epoch {epoch.number} is {seats}, not {best}")
        reference.seat(tuple(CommitteeMember(key, address_of(key), weight) for key, weight in best))
