# SPDX-License-Identifier: GPL-3.0-or-later
"""Brings proofs of fraud to the chain: one challenge per contract, until the operator is convicted or the window has passed.

The judge is asked here first, by the very code that the chain runs: what does not convict is never sent, since it would cost the sender.
"""

import random
from collections.abc import Callable
from typing import Literal

import msgspec
import structlog
import trio

from ledger.contract_bodies import ChallengeBatch
from ledger.contract_queries import batch_at, contract_at
from ledger.contract_state import Contract
from ledger.errors import InvalidInput, RejectionReason
from ledger.fraud import check_fraud
from ledger.genesis import chain_id
from ledger.offchain import BatchCommitment, ContractTerms, FraudProof, MachineRegistry
from ledger.store import Store
from node.own_transactions import OwnTransactions

log = structlog.get_logger()

SPREAD_S = 0.3
"""All watchers find a fraud at one moment; one challenge is enough, and the window may be short."""
RETRY_S = 0.5
"""Between two looks at whether challenges have taken effect."""
MAX_ENDED = 256
"""Frauds that are over and still told of; the oldest is forgotten first."""

FaultStage = Literal["found", "challenged", "convicted", "missed", "refuted"]
"""Found; a challenge is under way; the operator is convicted; the window has passed before; the chain has not followed the proof."""
OPEN_STAGES: tuple[FaultStage, ...] = ("found", "challenged")
"""Those of a fraud that is not over."""


class Fault(msgspec.Struct, frozen=True):
    """A fraud that this node has found."""

    contract_id: bytes
    """The contract."""
    number: int
    """The batch."""
    verdict: str
    """What the judge says, for people."""
    stage: FaultStage
    """What became of it."""
    transaction: bytes
    """The newest challenge of this node's; empty when there was none."""
    trouble: str
    """Why the challenge cannot be brought at the moment, for people; empty when it can."""


class _Case(msgspec.Struct):
    """A fault with its proof."""

    fault: Fault
    proof: FraudProof


class Challenging:
    """Frauds that are waiting for the chain; at most one per contract, since the first one ends it."""

    def __init__(
        self,
        *,
        store: Store,
        machines: MachineRegistry,
        transactions: OwnTransactions,
        is_behind: Callable[[], bool],
        rng: random.Random,
    ) -> None:
        """While the node `is_behind` it sends nothing: the chain may have convicted already."""
        self._store = store
        self._chain_id = chain_id(store.genesis)
        self._machines = machines
        self._transactions = transactions
        self._is_behind = is_behind
        self._rng = rng
        self._cases: dict[bytes, _Case] = {}
        self._some = trio.Event()

    def faults(self) -> tuple[Fault, ...]:
        """Return what was found, the oldest first."""
        return tuple(case.fault for case in self._cases.values())

    def fault_of(self, contract_id: bytes) -> Fault | None:
        """Return what was found of a contract."""
        case = self._cases.get(contract_id)
        return None if case is None else case.fault

    async def take(self, terms: ContractTerms, commitment: BatchCommitment, proof: FraudProof) -> Fault | None:
        """Take a proof against a batch that counts; None if the judge here does not convict on it, which is a fault of ours."""
        identifier, number = terms.contract_id, commitment.number
        known = self.fault_of(identifier)
        # A chain that has once not followed this node's proof will not follow the next one: that is a fault of ours, and costs credits.
        if known is not None and (known.stage in (*OPEN_STAGES, "refuted") or known.number == number):
            return known
        where = {"contract": identifier.hex(), "batch": number}
        judge = (self._chain_id, terms, commitment, proof, self._machines)
        try:
            verdict = await trio.to_thread.run_sync(check_fraud, *judge)
        except InvalidInput as error:
            log.warning("a batch seems wrong, but nothing proves it", **where, why=str(error))
            return None
        log.error("the operator of a contract has committed a wrong batch", **where, why=verdict)
        fault = Fault(identifier, number, verdict, "found", b"", "")
        self._cases.pop(identifier, None)
        self._cases[identifier] = _Case(fault, proof)
        ended = [key for key, case in self._cases.items() if case.fault.stage not in OPEN_STAGES]
        for key in ended[: max(0, len(ended) - MAX_ENDED)]:
            del self._cases[key]
        self._some.set()
        return fault

    async def run(self) -> None:
        """Challenge until cancelled."""
        while True:
            await self._some.wait()
            self._some = trio.Event()
            await trio.sleep(self._rng.uniform(0, SPREAD_S))
            while waiting := [case for case in self._cases.values() if case.fault.stage in OPEN_STAGES]:
                for case in waiting:
                    await self._follow(case)
                await trio.sleep(RETRY_S)

    async def _follow(self, case: _Case) -> None:
        """Look at what became of a fault, and send the challenge if it is not under way."""
        fault = case.fault
        stage = self._stage(fault)
        if stage not in OPEN_STAGES:
            self._transactions.forget(_purpose(fault))
            self._note(case, stage=stage, trouble="")
            tell = log.info if stage == "convicted" else log.error
            tell("a fraud is over", contract=fault.contract_id.hex(), batch=fault.number, how=stage)
        elif not self._is_behind() and not self._transactions.is_under_way(_purpose(fault)):
            body = ChallengeBatch(fault.contract_id, fault.number, case.proof)
            outcome = await self._transactions.send(_purpose(fault), body)
            if outcome.accepted:
                log.info("challenge sent", contract=fault.contract_id.hex(), transaction=outcome.id.hex())
                self._note(case, stage="challenged", transaction=outcome.id, trouble=self._refusal(fault))
            elif outcome.reason == RejectionReason.FALSE_CHALLENGE:
                log.warning("the chain's judge does not convict", contract=fault.contract_id.hex(), why=outcome.detail)
                self._note(case, stage="refuted", trouble=outcome.detail)
            else:
                if outcome.detail != case.fault.trouble:  # once, not at each attempt
                    log.error("a fraud cannot be challenged yet", contract=fault.contract_id.hex(), why=outcome.detail)
                self._note(case, trouble=outcome.detail or outcome.reason)

    def _refusal(self, fault: Fault) -> str:
        """Return why the last challenge had no effect; a sender needs the penalty for a false one even for a right one."""
        receipt = self._store.receipt(fault.transaction) if fault.transaction else None
        if receipt is None or not receipt.reason:
            return ""
        return f"the last challenge was refused as {receipt.reason}; it is sent again"

    def _stage(self, fault: Fault) -> FaultStage:
        """Return what the chain says."""
        contract = contract_at(self._store, fault.contract_id)
        if contract is None or fault.number >= contract.batch_count:
            return "convicted"  # nothing else takes a batch back
        if self._is_final(contract, fault.number):
            return "missed"
        receipt = self._store.receipt(fault.transaction) if fault.transaction else None
        if receipt is not None and receipt.reason == RejectionReason.FALSE_CHALLENGE:
            return "refuted"
        return fault.stage

    def _is_final(self, contract: Contract, number: int) -> bool:
        batch = batch_at(self._store, contract, number)
        window = self._store.genesis.parameters.contracts.window_microblocks
        # What is sent now commits in the next microblock at the earliest.
        return batch is None or batch.height + window <= self._store.head().height + 1

    @staticmethod
    def _note(case: _Case, **changes: object) -> None:
        case.fault = msgspec.structs.replace(case.fault, **changes)


def _purpose(fault: Fault) -> tuple[str, bytes, int]:
    return ("challenge", fault.contract_id, fault.number)
