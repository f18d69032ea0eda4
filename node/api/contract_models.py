# SPDX-License-Identifier: GPL-3.0-or-later
"""The shapes of off-chain contracts on the HTTP API."""

from typing import Any, Literal

from node.api.models import Hex, Model

MAX_SEND_REQUESTS = 64
"""Requests of one call, each of up to 64 operations; as many as one node passes on to another at once."""
MAX_SEND_BYTES = 2 * MAX_SEND_REQUESTS * (8 * 1024 + 16)
"""All of them at their largest, in hexadecimal."""
MAX_CLOSE_MS = 60_000
"""Longest wait for an operator that brings all that it has promised to the chain."""
MAX_RECEIPT_BYTES = 512
"""A signed receipt takes about 260 bytes."""
MAX_CLOSE_BYTES = 1024
"""A signed order to close a contract takes about 180 bytes."""
MAX_BATCHES = 100
"""Batches of one answer."""
COST_BATCHES = 8
"""Newest batches that an estimate of costs looks at."""

Rung = Literal["received", "included", "committed", "final", "voided"]
"""How far a request has come; voided: its batch was undone, or never came."""


class Cost(Model):
    """What operations cost off the chain, and what the same ones would cost on it."""

    batches: int
    """Batches that this was measured in; 0 when there are none yet, and then nothing is known of the off-chain side."""
    operations: int
    """Operations in these batches."""
    fee_microcredit: int
    """Fees of the transactions that committed them, in millionths of a credit: what all these operations cost together."""
    chain_bytes: int
    """Size of these transactions: what all these operations take on the chain together."""
    data_bytes: int
    """Size of the data published for them, which nodes keep until the batch is final and the retention time is over."""
    onchain_fee_microcredit: int
    """Smallest fee of one transaction: what a single operation would cost on the chain."""
    onchain_bytes: int
    """Size of a transaction that carries one operation of the average size seen here."""
    paid_by: Hex
    """Account that pays for commitments: the operator's. Users pay nothing for an operation."""


class Contract(Model):
    """An off-chain contract."""

    contract_id: Hex
    """Identifier."""
    machine: str
    """Name of the state machine."""
    version: int
    """Version of the machine."""
    is_known: bool
    """Whether this node ships the machine."""
    parameters: Any
    """The machine's parameters by name; in hexadecimal when the machine is unknown here."""
    raw_parameters: Hex
    """The parameters as the chain has them."""
    operator: Hex
    """Public key that signs receipts and commits batches."""
    operator_address: Hex
    """Account of that key."""
    status: Literal["open", "closed", "frozen"]
    """Open; ended by its operator; ended because of fraud or neglect."""
    explanation: str
    """The status in words, and what follows from it."""
    is_settled: bool
    """Whether it has ended and nothing of it can be contested any more."""
    settles_height: int
    """Once ended: the height from which it is settled; 0 while open."""
    opened_height: int
    """Height of the microblock that opened it."""
    bond_microcredit: int
    """What fraud would burn, in millionths of a credit; 0 once burnt or paid back."""
    escrow_microcredit: int
    """Credits paid in and not paid out: what the contract owes to accounts in sum."""
    takes_deposits: bool
    """Whether accounts can hold credits in it."""
    batch_count: int
    """Batches that count."""
    final_count: int
    """How many of them are final: always the first ones."""
    window_microblocks: int
    """Microblocks after which a batch that nobody has challenged is final."""
    root: Hex
    """Root of the contract's state after the last batch."""
    until_ms: int
    """End of the last batch, in milliseconds since 1970 (UTC)."""
    last_height: int
    """Height that committed the last batch."""
    forced_count: int
    """Requests that the chain has ever forced, deposits included."""
    answered_count: int
    """How many of them batches answer for."""
    freezable_ms: int | None
    """Time in milliseconds since 1970 (UTC): once microblocks have it, anyone may freeze the contract, if no batch comes before; null
    when no forced request waits."""


class Contracts(Model):
    """Contracts in the order of their identifiers."""

    contracts: tuple[Contract, ...]
    """The contracts."""
    next_start: Hex | None
    """Where to go on; null at the end."""


class ContractBatch(Model):
    """A committed batch."""

    number: int
    """Its number, from 0."""
    height: int
    """Height of the microblock that committed it."""
    final_height: int
    """Height at which its window ends."""
    status: Literal["pending", "final"]
    """Pending while it can be challenged."""
    requests: int
    """Number of requests."""
    operations: int
    """Number of operations."""
    forced: int
    """Forced requests that it answers for."""
    previous_root: Hex
    """Root of the contract's state before."""
    new_root: Hex
    """Root after."""
    leaves_root: Hex
    """Merkle root of the leaves."""
    data_digest: Hex
    """Digest of the published data."""
    data_bytes: int
    """Size of the published data."""
    from_ms: int
    """End of the batch before, in milliseconds since 1970 (UTC)."""
    until_ms: int
    """End of this batch."""
    commitment: Hex
    """The whole commitment, encoded."""


class ContractBatches(Model):
    """Batches in order."""

    batches: tuple[ContractBatch, ...]
    """The batches."""
    next_start: int | None
    """Where to go on; null at the end."""


class ForcedRequest(Model):
    """A request that the operator must answer for, or has answered in a batch that is not final yet."""

    number: int
    """Its number among all that was forced on the contract."""
    request_digest: Hex
    """Digest of the request's bytes."""
    height: int
    """Height of the microblock that forced it."""
    time_ms: int
    """Time of that microblock, in milliseconds since 1970 (UTC)."""
    due_batch: int
    """Last batch that may answer for it."""
    is_answered: bool
    """Whether a batch answers for it."""
    account: Hex | None
    """Of a deposit, the account."""
    amount_microcredit: int | None
    """Of a deposit, the amount in millionths of a credit."""
    is_reclaimable: bool
    """Whether it is a deposit that an ended contract has never taken up, so that it is paid back on request."""


class ForcedRequests(Model):
    """Forced requests in the chain's order."""

    requests: tuple[ForcedRequest, ...]
    """Those that the chain still knows."""
    next_start: int | None
    """Where to go on; null at the end."""


class ContractAccount(Model):
    """An account inside a contract."""

    account: Hex
    """Its address."""
    next_sequence: int | None
    """Number of its next operation, as the operator has it; null when the operator cannot be asked."""
    batch: int | None
    """Newest final batch that the credits below are read from; null when they are not asked for or cannot be read here."""
    withdrawn_microcredit: int | None
    """All that it has withdrawn by that batch, in millionths of a credit; null as above, or when the machine takes no deposits."""
    balance_microcredit: int | None
    """What it held at that batch."""
    claimed_microcredit: int
    """What the chain has paid out to it of its withdrawals."""
    is_settled: bool
    """Whether it was paid its balance too, after the end."""
    owed_microcredit: int | None
    """What a claim would pay now; null as above."""


class RequestOutcome(Model):
    """What became of one request."""

    accepted: bool
    """Whether the operator has promised it a place."""
    reason: str
    """Why not; a stable name, empty when accepted."""
    detail: str
    """For people: what exactly."""
    receipt: Hex | None
    """The operator's signed receipt, encoded."""
    outcomes: Hex | None
    """Encoded outcomes of its operations, whose digest the receipt holds."""


class RequestOutcomes(Model):
    """One outcome for each request, in their order."""

    outcomes: tuple[RequestOutcome, ...]
    """The outcomes."""


class Requests(Model):
    """Signed requests, as `POST /v1/contracts/{contract}/requests` takes them."""

    requests: tuple[Hex, ...]
    """The requests, in the order in which they are to be executed."""


class ContractWatch(Model):
    """How this node watches a contract's operator."""

    is_watched: bool
    """Whether it executes again what the operator commits, and would challenge what is wrong."""
    batches: int
    """Batches that were executed here and are right."""
    stage: str
    """How it stands: waiting, following, data_missing, no_state, too_large, unreadable, wrong or ended; empty when it is not watched."""
    detail: str
    """More of it."""
    fault: str
    """What the operator was found guilty of; empty for nothing."""


class ContractState(Model):
    """A state of a contract that this node keeps: what a watcher begins with, and whoever executes batches again."""

    number: int
    """The batch that comes next. The state is right if its root is the new root of the batch before."""
    pages: int
    """Its pages."""
    entries: int
    """Its entries."""
    size_bytes: int
    """Bytes of all its pages."""


class ContractStates(Model):
    """States of one contract."""

    states: tuple[ContractState, ...]
    """The oldest first; none where nobody watches the contract, such as at its operator's node."""


class ReceiptHeld(Model):
    """A receipt that this node's watcher compares with its batch."""

    batch: int
    """The batch that it promises a place in."""
    index: int
    """The place."""


class Closing(Model):
    """What became of a contract that was to be closed."""

    accepted: bool
    """Whether the transaction that closes it was taken, after all that was promised stood on the chain."""
    reason: str
    """Why not; empty when accepted."""
    detail: str
    """For people: what exactly."""


class RequestStatus(Model):
    """How far a request has come, and what that rests on."""

    status: Rung
    """How far."""
    rests_on: str
    """In words: whose promise or which fact of the chain."""
    batch: int | None
    """The batch; null while it has no place."""
    index: int | None
    """Place in the batch."""
    height: int | None
    """Height of the microblock that committed the batch; null before."""
    final_height: int | None
    """Height at which the batch is final; null before it is committed."""
    cost: Cost
    """Its batch's costs once committed; before that those of the last batches."""


class RequestProof(Model):
    """That a request stands in a batch."""

    request: Hex
    """The request's bytes."""
    proof: Hex
    """Encoded `LeafProof` under the batch's root of leaves."""


class ValueProof(Model):
    """A state key at the end of a batch."""

    key: Hex
    """The state key."""
    value: Hex | None
    """Its value; null when it has none."""
    entry: Hex
    """Encoded `WitnessEntry`: key, value and proof under the batch's new root."""


class ContractCost(Model):
    """What operations of a contract cost, measured in its newest batches."""

    cost: Cost
    """The costs."""


class ContractNews(Model):
    """Something that happened to a contract in a microblock."""

    contract_id: Hex
    """The contract."""
    kind: Literal["opened", "funded", "forced", "committed", "final", "fraud", "frozen", "closed"]
    """What happened."""
    batch: int | None
    """The batch, where it is about one: committed, final, or proved wrong."""
