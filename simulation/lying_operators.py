# SPDX-License-Identifier: GPL-3.0-or-later
"""Dishonest operators: the production core behind a hand that changes what leaves it, from `ContractPlan.lie_batch` on or about it.

forge_root, forge_outcome, last_leaf   a leaf with another root or outcome; `last_leaf` the last one
forge_state    credits that nobody has deposited, and everything after them as it follows
drop, reorder, replace                 a batch without, with exchanged, or with other requests than were receipted; right by itself
equivocate     two receipts for one place
two_batches    two batches for one number, both on their way to the chain
wrong_link     commitments that do not follow: another root, time or number before
wrong_forced   commitments that cite other forced requests than are due
wrong_end      a commitment that ends otherwise than its data
wrong_data     a commitment to other data than is published
withhold_all, withhold_some            data that nobody gets, or one replica
ignore_forced  no answers to what the chain has forced, and an early end
stop           nothing any more

Lies are consistent wherever they can be: digests and Merkle roots are right for what is published. Liars do not crash.
"""

from collections.abc import Sequence

import msgspec

from contracts.batch_data import BatchItem, commit, open_data
from contracts.machines.micro_fees import Pay, balance_key
from contracts.operator import Answer, Batch, Operator, OperatorLimits, Start
from contracts.requests import sign_request
from contracts.shipped import MACHINES
from ledger.bodies import Body
from ledger.codec import encode
from ledger.contract_bodies import CloseContract, CommitBatch
from ledger.contract_queries import contract_at
from ledger.contract_state import Contract, is_settled
from ledger.crypto.hashing import Tag, tagged_hash
from ledger.errors import InvalidInput
from ledger.offchain import BatchCommitment, RequestReceipt, data_digest, sign_receipt
from simulation.heirs import claim_of
from simulation.operators import WAITING_BATCHES, Reply, SimulatedOperator
from simulation.reference_batches import Entries
from simulation.replica import Replica
from simulation.wishes import WAIT, Wait

_replace = msgspec.structs.replace
OTHER = tagged_hash(Tag.BLOB, b"what nobody has brought about")
FORGED_MICROCREDIT = (700, 10**6)
"""What a liar invents: something that the escrow covers, or more."""
TRIES = 3
"""How often a commitment that the chain must refuse is sent before the true one."""


class LyingOperator(SimulatedOperator):
    """Runs one contract, and lies."""

    may_tear = False
    _shadow: tuple[Operator, int] | None = None
    """A second core, and how many forced requests it has taken."""
    _has_lied = False
    _second: BatchCommitment | None = None
    _refused: tuple[int, BatchCommitment] | None = None
    _tries = 0
    _claims = 0
    _last_place: RequestReceipt | None = None
    elsewhere: Replica
    """Another replica, for data that home does not get."""
    _snapshots: dict[int, tuple[Start, int]]
    """By batch: what it begins with, and how many forced requests were taken before it."""
    _forged: Entries

    def begin(self) -> None:
        """Open the contract, and run it."""
        self._snapshots = {}
        self._forged = {}
        super().begin()

    def _lies_now(self, number: int) -> bool:
        return number >= self.plan.lie_batch and not self._has_lied

    def wanted(self, replica: Replica) -> Body | Wait | None:
        """Return the next transaction; whose forgery nobody has challenged in time takes out what it has forged."""
        contract = contract_at(replica.disk.store, self.contract_id)
        if contract is not None and contract.status != "open" and self.core is not None:
            self._forged = dict(self.core.state.entries())
        body = super().wanted(replica)
        if body is not None or contract is None or self.plan.lie != "forge_state" or self._claims == TRIES:
            return body
        if not is_settled(contract, replica.disk.store.head().height + 1):
            return WAIT
        self._claims += 1
        number = max(0, contract.batch_count - 1)
        return claim_of(self.contract_id, self.key.address, number, self._forged, settled=True)

    # ------------------------------------------------------------------ requests

    def receive(self, raw: bytes, reply: Reply) -> None:
        """Take a request of a user; perhaps with a receipt that cannot be kept beside another one."""
        if self._is_mute():
            return
        self._before()
        lies = self.plan.lie == "equivocate" and self.core is not None and self._lies_now(self.core.number)
        super().receive(raw, self._two_for_one(reply) if lies else reply)

    def _two_for_one(self, reply: Reply) -> Reply:
        def lie(answer: Answer | None) -> None:
            if answer is None:
                reply(None)
                return
            receipt, before = answer.signed.receipt, self._last_place
            self._last_place = receipt
            if before is not None and before.number == receipt.number and before.index != receipt.index:
                same_place = _replace(receipt, index=before.index)
                answer = _replace(answer, signed=sign_receipt(self.chain_id, self.key, same_place))
                self._has_lied = True
            reply(answer)

        return lie

    def take_forced(self, contract: Contract) -> None:
        """Accept what the chain has forced, or ignore it."""
        if self.plan.lie != "ignore_forced" or self.core is None or self.core.number < self.plan.lie_batch:
            self._before()
            super().take_forced(contract)

    def _is_mute(self) -> bool:
        return self.plan.lie == "stop" and self.core is not None and self.core.number >= self.plan.lie_batch

    def act(self, contract: Contract) -> None:
        """Do what is due, or nothing any more."""
        if not self._is_mute():
            super().act(contract)

    def _before(self) -> None:
        """Before the state changes: keep what a shadow begins with, or bring credits about."""
        core = self.core
        if core is None:
            return
        if core.number not in self._snapshots:
            start = Start(core.number, self._from_ms(core), tuple(core.state.entries()))
            self._snapshots[core.number] = start, self.taken
        if self.plan.lie == "forge_state" and self._lies_now(core.number):
            core.state.put(b"m" + balance_key(self.key.address), encode(self.rng.choice(FORGED_MICROCREDIT)))
            self._has_lied = True

    def _from_ms(self, core: Operator) -> int:
        """Return where the open batch begins."""
        commitment = self.to_commit.get(core.number - 1)
        return core._from_ms if commitment is None else commitment.until_ms

    # ------------------------------------------------------------------ batches

    def publish(self, batch: Batch) -> None:
        """Publish the data of a batch, then commit it; or something else."""
        lie, number = self.plan.lie, batch.commitment.number
        if not self._lies_now(number):
            super().publish(batch)
            return
        match lie:
            case "forge_root" | "forge_outcome" | "last_leaf":
                self._has_lied = True
                super().publish(self._with_wrong_leaf(batch))
            case "drop" | "reorder" | "replace" | "two_batches":
                self._publish_shadow(batch)
            case "wrong_link" | "wrong_forced" | "wrong_end" | "wrong_data":
                self._has_lied = True
                super().publish(batch)
                self._refused = (number, self._wrong(batch.commitment))
                self.home.publish(OTHER)  # the data of wrong_data is there, but is none
            case "withhold_all":
                self.to_commit[number] = batch.commitment
            case "withhold_some":
                self.elsewhere.publish(batch.data)
                self.to_commit[number] = batch.commitment
            case _:
                super().publish(batch)

    def next_commit(self, contract: Contract) -> Body | Wait:
        """Return the commitment that comes next: perhaps first one that does not follow, or after another of the same number."""
        if self._refused is not None and contract.batch_count >= self._refused[0]:
            if self._tries < TRIES:
                self._tries += 1
                return CommitBatch(self._refused[1])
            self._refused = None
        second = self._second
        if second is not None and contract.batch_count == second.number and self.rng.randrange(2):
            return CommitBatch(second)
        if second is not None and contract.root == second.new_root and self._shadow is not None:
            self._go_on_with(*self._shadow)
            self._second = None
        if self._is_mute():
            return WAIT
        owes = contract.answered_count < contract.forced_count
        if self.plan.lie == "ignore_forced" and owes and self.rng.randrange(4) == 0:
            return CloseContract(self.contract_id)
        return super().next_commit(contract)

    def _wrong(self, right: BatchCommitment) -> BatchCommitment:
        match self.plan.lie:
            case "wrong_link":
                others: list[BatchCommitment] = [
                    _replace(right, previous_root=OTHER),
                    _replace(right, number=right.number + 1),
                    _replace(right, from_ms=right.from_ms - 1),
                    _replace(right, from_ms=min(right.from_ms + 1, right.until_ms), previous_root=OTHER),
                ]
                return self.rng.choice(others)
            case "wrong_forced":
                places = right.forced
                claims = [places[1:], places[:-1], places[::-1] if len(places) < 2 else ()]
                return _replace(right, forced=self.rng.choice(claims))
            case "wrong_end":
                return _replace(right, new_root=OTHER)
            case _:
                return _replace(right, data_digest=data_digest(OTHER), data_bytes=len(OTHER))

    def _with_wrong_leaf(self, batch: Batch) -> Batch:
        honest = batch.commitment
        items = list(open_data(honest, batch.data).items)
        place = len(items) - 1 if self.plan.lie == "last_leaf" else self.rng.randrange(len(items))
        change = {"outcomes_digest": OTHER} if self.plan.lie == "forge_outcome" else {"root": OTHER}
        items[place] = _replace(items[place], **change)
        forced = [claim.index for claim in honest.forced]
        return Batch(
            *commit(
                honest.contract_id,
                honest.number,
                honest.previous_root,
                honest.from_ms,
                honest.until_ms,
                items,
                forced,
            )
        )

    # ------------------------------------------------------------------ another batch than was promised

    def _publish_shadow(self, batch: Batch) -> None:
        honest = batch.commitment
        items = open_data(honest, batch.data).items
        snapshot = self._snapshots.get(honest.number)
        other = None if snapshot is None else self._otherwise(snapshot, honest, items)
        if other is None or other.commitment == honest:
            super().publish(batch)
            return
        self._has_lied = True
        self.home.publish(other.data)
        if self.plan.lie == "two_batches":
            self._second = other.commitment
            super().publish(batch)
            return
        self.to_commit[honest.number] = other.commitment
        assert self._shadow is not None, "it has just made a batch"
        self._go_on_with(*self._shadow)

    def _otherwise(
        self, snapshot: tuple[Start, int], honest: BatchCommitment, items: Sequence[BatchItem]
    ) -> Batch | None:
        """Return another batch of the same number, made by a second core."""
        start, taken = snapshot
        forced = {place.index for place in honest.forced}
        wanted = [(item.request, item.time_ms, index in forced) for index, item in enumerate(items)]
        free = [place for place, (_, _, is_forced) in enumerate(wanted) if not is_forced]
        if not free:
            return None
        place = self.rng.choice(free)
        if self.plan.lie == "reorder":
            other = self.rng.choice(free)
            wanted[place], wanted[other] = wanted[other], wanted[place]
        elif self.plan.lie == "replace":
            pay = Pay(self.rng.randbytes(20), 1, OTHER)
            mine = sign_request(self.chain_id, self.key, self.contract_id, 0, [pay])
            wanted[place] = (mine, wanted[place][1], False)
        else:
            del wanted[place]
        limits = OperatorLimits(batch_age_ms=self.plan.batch_ms, waiting_batches=WAITING_BATCHES)
        shadow = Operator(self.chain_id, self.terms, self.key, MACHINES, limits, start)
        for raw, time_ms, is_forced in wanted:
            try:
                shadow.accept(raw, time_ms, is_forced=is_forced)
            except InvalidInput:
                continue
        if shadow.cut(honest.until_ms) is None:
            return None
        self._shadow = shadow, taken + len(honest.forced)
        return shadow.durable(shadow.appended).batches[0]

    def _go_on_with(self, shadow: Operator, taken: int) -> None:
        """Forget what the first core has promised since, and take again what was forced since."""
        self.core, self._shadow, self.taken = shadow, None, taken
        self.forget(shadow.appended)
