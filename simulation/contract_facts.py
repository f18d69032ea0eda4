# SPDX-License-Identifier: GPL-3.0-or-later
"""What the reference knows of off-chain contracts, and where the state of a chain says otherwise."""

from typing import Protocol

import msgspec

from ledger.contract_state import CommittedBatch, Contract, ContractStatus, claim_key, contract_key
from ledger.crypto.hashing import ZERO_DIGEST
from ledger.offchain import BatchCommitment, ContractTerms
from ledger.state import CLAIMS, CONTRACT_BATCHES, FORCED_REQUESTS, State
from simulation.reference_batches import Entries, Replayed


class Purse(Protocol):
    """Balances outside of contracts."""

    burnt: int

    def balance(self, address: bytes) -> int:
        """Return what an account holds."""

    def credit(self, address: bytes, amount: int) -> None:
        """Add to a balance."""

    def convict(self, key: bytes) -> None:
        """Note the guilt of a key."""


class Sent(msgspec.Struct, frozen=True):
    """A transaction about a contract, as the reference needs it."""

    height: int
    """Microblock that commits it."""
    time_ms: int
    """Time of that microblock."""
    sender: bytes
    """Address of the sender."""
    public_key: bytes
    """Key of the sender."""
    spare: int
    """What the sender holds beside the fee."""
    reason: str
    """The state's verdict, as the receipt has it; of use for challenges only."""


class ForcedFacts(msgspec.Struct):
    """A request that the chain has forced."""

    digest: bytes
    """Of its bytes."""
    height: int
    """Height that forced it."""
    time_ms: int
    """Time of the microblock that forced it."""
    due_batch: int
    """Last batch that may answer for it."""
    account: bytes = b""
    """Of a deposit, its account."""
    amount: int = 0
    """Of a deposit, in millionths of a credit."""
    is_paid_back: bool = False
    """Whether a deposit has been reclaimed."""


class BatchFacts(msgspec.Struct, frozen=True):
    """A batch that was committed."""

    commitment: BatchCommitment
    """What the chain has of it."""
    height: int
    """Height that committed it."""
    answered: int
    """Forced requests answered with it."""
    replayed: Replayed
    """What its data really comes to."""


class ContractFacts(msgspec.Struct):
    """One contract."""

    terms: ContractTerms
    """Its terms."""
    opened_height: int
    """Height that opened it."""
    opened_ms: int
    """Time of that microblock."""
    bond: int
    """What fraud would burn."""
    status: ContractStatus = "open"
    """How it is."""
    escrow: int = 0
    """What was paid in and not paid out."""
    batches: list[BatchFacts] = msgspec.field(default_factory=list)
    """Batches that count."""
    forced: list[ForcedFacts] = msgspec.field(default_factory=list)
    """All that was ever forced."""
    settles: int = 0
    """Once ended, the height from which it is settled."""
    withdrawn: dict[bytes, int] = msgspec.field(default_factory=dict)
    """What accounts were paid of what they had withdrawn."""
    settled: set[bytes] = msgspec.field(default_factory=set)
    """Accounts that were paid their balance."""
    is_convicted: bool = False
    """Whether fraud has ended it."""
    is_forged: bool = False
    """Whether a wrong batch has become final, so that no sum is right any more."""

    @property
    def answered(self) -> int:
        """Forced requests that the batches answer for."""
        return self.batches[-1].answered if self.batches else 0

    @property
    def deposits(self) -> int:
        """Deposits forced so far."""
        return sum(1 for forced in self.forced if forced.account)

    @property
    def root(self) -> bytes:
        """Root of the state after the last batch."""
        return self.batches[-1].commitment.new_root if self.batches else ZERO_DIGEST

    @property
    def until_ms(self) -> int:
        """End of the last batch."""
        return self.batches[-1].commitment.until_ms if self.batches else self.opened_ms

    @property
    def last_height(self) -> int:
        """Height that committed the last batch."""
        return self.batches[-1].height if self.batches else self.opened_height

    def entries(self) -> Entries:
        """Return the true state after the last batch."""
        return self.batches[-1].replayed.entries if self.batches else {}

    def is_settled(self, height: int) -> bool:
        """Tell whether it has ended for good."""
        return self.status != "open" and height >= self.settles

    def is_over(self, height: int) -> bool:
        """Tell whether it has ended and nothing is left in it."""
        return self.is_settled(height) and not self.bond and (not self.escrow or self.is_forged)


def wrong_rows(state: State, facts: ContractFacts) -> str:
    """Return which of a contract's batches, forced requests or claims the state has otherwise."""
    identifier = facts.terms.contract_id
    for number, batch in enumerate(facts.batches):
        expected = CommittedBatch(batch.commitment, batch.height, batch.answered)
        if state.get(CONTRACT_BATCHES, contract_key(identifier, number)) != expected:
            return f"batch {number} is another one than was committed"
    for number, waits in enumerate(facts.forced):
        there = state.get(FORCED_REQUESTS, contract_key(identifier, number))
        if number >= facts.answered and (there is None) != waits.is_paid_back:
            return f"forced request {number} is {there}; paid back: {waits.is_paid_back}"
        told = there and (there.request_digest, there.height, there.time_ms, there.due_batch, there.amount_microcredit)
        if told and told != (waits.digest, waits.height, waits.time_ms, waits.due_batch, waits.amount):
            return f"forced request {number} is {there}, not {waits}"
    for account, amount in facts.withdrawn.items():
        claimed = state.get(CLAIMS, claim_key(identifier, account))
        paid = claimed and (claimed.withdrawn_microcredit, claimed.is_settled)
        if paid != (amount, account in facts.settled):
            return f"account {account.hex()} has claimed {claimed}, not {amount}"
    return ""


def expected_row(facts: ContractFacts) -> Contract:
    """Return what the state must say of a contract, but for the rows that are cleared."""
    return Contract(
        terms=facts.terms,
        status=facts.status,
        opened_height=facts.opened_height,
        bond_microcredit=facts.bond,
        escrow_microcredit=facts.escrow,
        batch_count=len(facts.batches),
        root=facts.root,
        until_ms=facts.until_ms,
        last_height=facts.last_height,
        forced_count=len(facts.forced),
        answered_count=facts.answered,
        cleared_count=0,
        deposit_count=facts.deposits,
        settles_height=facts.settles,
    )
