# SPDX-License-Identifier: GPL-3.0-or-later
"""What transactions do with off-chain contracts: one struct per kind. The rules stand in `ledger.contract_acts`."""

from typing import Annotated

import msgspec

from ledger.codec import Address, Digest, Uint, Wire
from ledger.offchain import MAX_PARAMETERS_BYTES, BatchCommitment, FraudProof, MachineName, MachineVersion, RequestBytes
from ledger.partial_tree import WitnessEntry

MAX_CLAIM_ENTRIES = 2
"""What an account has withdrawn, and what it holds."""


class OpenContract(Wire, frozen=True, tag=18):
    """The sender opens a contract, operates it, and leaves a bond that fraud would burn."""

    number: Uint
    """Chosen by the sender; with the sender's key it gives the contract's identifier, which serves once."""
    machine: MachineName
    """Name of the state machine."""
    version: MachineVersion
    """Version of the machine."""
    parameters: Annotated[bytes, msgspec.Meta(max_length=MAX_PARAMETERS_BYTES)]
    """The machine's parameters, in its own encoding."""
    bond_microcredit: Uint
    """Credits moved from the sender to the bond, in millionths."""


class FundContract(Wire, frozen=True, tag=19):
    """Credits move from the sender to the contract's escrow; the chain forces their deposit for an account."""

    contract_id: Digest
    """The contract."""
    account: Address
    """The account that may use them inside the contract."""
    amount_microcredit: Uint
    """Amount in millionths of a credit."""


class CommitBatch(Wire, frozen=True, tag=20):
    """The operator commits the next batch; its data must be published, else no member votes for the transaction."""

    commitment: BatchCommitment
    """The batch."""


class ChallengeBatch(Wire, frozen=True, tag=21):
    """Anyone proves that a batch that is not final yet is wrong. A false proof costs its sender, as false evidence does."""

    contract_id: Digest
    """The contract."""
    number: Uint
    """The batch."""
    proof: FraudProof
    """The proof. It is judged when it commits, never before."""


class ForceOperation(Wire, frozen=True, tag=22):
    """Anyone puts a request before the operator that it must answer in one of its next batches."""

    contract_id: Digest
    """The contract."""
    request: RequestBytes
    """The request, as its author signed it."""


class FreezeContract(Wire, frozen=True, tag=23):
    """Anyone ends a contract whose operator has left a forced request unanswered for too long."""

    contract_id: Digest
    """The contract."""


class CloseContract(Wire, frozen=True, tag=24):
    """The operator ends a contract that has answered everything that was forced."""

    contract_id: Digest
    """The contract."""


class ClaimBalance(Wire, frozen=True, tag=25):
    """Anyone has an account paid what a final batch proves: what it has withdrawn, and all that it holds once the contract has ended."""

    contract_id: Digest
    """The contract."""
    account: Address
    """The account, which is paid."""
    number: Uint
    """The final batch whose new root the proofs are for; the last one once the contract has ended."""
    entries: Annotated[tuple[WitnessEntry, ...], msgspec.Meta(min_length=1, max_length=MAX_CLAIM_ENTRIES)]
    """The account's withdrawn sum, then, once the contract has ended, its balance, each with its proof."""


class ReclaimDeposit(Wire, frozen=True, tag=26):
    """Anyone has a deposit paid back that an ended contract has never taken up."""

    contract_id: Digest
    """The contract."""
    number: Uint
    """Number of the forced request that the deposit is."""


class ReleaseBond(Wire, frozen=True, tag=27):
    """Anyone has the bond of an ended contract paid back to its operator."""

    contract_id: Digest
    """The contract."""


ContractBody = (
    OpenContract
    | FundContract
    | CommitBatch
    | ChallengeBatch
    | ForceOperation
    | FreezeContract
    | CloseContract
    | ClaimBalance
    | ReclaimDeposit
    | ReleaseBond
)
