# SPDX-License-Identifier: GPL-3.0-or-later
"""A patient's look at the access-log contracts: fetches published batches and state proofs from a node and believes neither unchecked.

The contracts are read before the logs. A feed logs only what stands in a log already, so what comes in between can be in a log and in
no contract yet, and never the other way round.
"""

from collections.abc import Collection, Iterator, Sequence
from typing import Protocol

import msgspec

from contracts.machines.access_log import AccessHead, AccessLogParameters
from ledger.codec import Address, Digest, Uint, Wire, decoder
from ledger.errors import InvalidInput, NotFound, SpchainError
from ledger.offchain import BatchCommitment
from node.access_chain import BEGINNING, LoggedAccess, accesses_in, explain, head_key, proved_head
from node.access_check import Checked, ContractView, ShownLog, check
from node.actions import Actor
from node.clock import now_ms
from node.sharing_actions import LogOfProxy, audit

PROOF_ATTEMPTS = 3
"""Newest batches at which a node is asked for a proof: it may not have executed the last one yet."""
MAX_COMMITMENT_BYTES = 2_048
"""A commitment with 16 forced requests has 800 bytes."""
MAX_MEMORY_BYTES = 64 * 1024 * 1024
"""Some 400 000 accesses."""
decode_commitment = decoder(BatchCommitment, MAX_COMMITMENT_BYTES, name="commitment")
"""Decode what the chain keeps of a batch; raises `InvalidInput`."""


class ContractOf(msgspec.Struct, frozen=True):
    """An access-log contract as a node shows it."""

    contract_id: bytes
    """Its identifier."""
    operator: bytes
    """Address of its operator."""
    writers: tuple[bytes, ...]
    """Who may log; none for everybody."""
    final_count: int
    """How many batches are final."""


class ContractReads(Protocol):
    """What is asked of a node; `NodeReads` asks over HTTP."""

    def access_logs(self) -> Iterator[ContractOf]:
        """Yield all access-log contracts, ended ones as well."""
        ...

    def commitments(self, contract_id: bytes) -> Sequence[bytes]:
        """Return the commitments of all batches that count, encoded, in order."""
        ...

    def data(self, contract_id: bytes, number: int) -> bytes | None:
        """Return the published data of a batch; None when it cannot be had."""
        ...

    def proof(self, contract_id: bytes, number: int, key: bytes) -> bytes | None:
        """Return a state key at the end of a batch with its proof; None when the node cannot prove it."""
        ...


class Known(Wire, frozen=True):
    """What an earlier look has found in one contract and what was final then: a later one does not need those batches."""

    contract_id: Digest
    """The contract."""
    patient: Address
    """The patient."""
    batch: Uint
    """The last batch that was looked at."""
    start: AccessHead
    """The patient's head before the accesses."""
    accesses: tuple[LoggedAccess, ...]
    """The patient's accesses up to there, as a state proof has confirmed them."""
    from_ms: Uint
    """Time before which accesses are not known."""


class Memory(Wire, frozen=True):
    """A file of what is known."""

    known: tuple[Known, ...]
    """By contract."""


decode_memory = decoder(Memory, MAX_MEMORY_BYTES, name="file of accesses seen")
"""Read a file that holds what `remember` returned; raises `InvalidInput`."""


class AuditResult(msgspec.Struct, frozen=True):
    """A patient's audit."""

    logs: tuple[LogOfProxy, ...]
    """What institutions show."""
    checked: Checked
    """How it fits to the contracts."""


def audit_all(
    actor: Actor, patient: bytes, reads: ContractReads, only: bytes | None = None, known: Sequence[Known] = ()
) -> AuditResult:
    """Read contracts and logs and compare them; `only` names the one contract to look at. Raises `InvalidInput`, `NotFound`."""
    institutions = {one.address for one in actor.client.institutions()}
    views = look_at_all(reads, actor.rules.chain_id, patient, institutions, only, known)
    writers = {one.writer for view in views for one in view.accesses}
    logs = audit(actor, patient, writers)
    shown = [ShownLog(log.proxy, log.entries, not log.trouble) for log in logs]
    return AuditResult(logs, check(shown, views, now_ms()))


def look_at_all(
    reads: ContractReads,
    chain_id: bytes,
    patient: bytes,
    institutions: Collection[bytes],
    only: bytes | None = None,
    known: Sequence[Known] = (),
) -> list[ContractView]:
    """Look at the access-log contracts of institutions, or at one of whomever. Raises `NotFound` when that one is no such contract.

    Anybody can open a contract and fill it: those of strangers are not even fetched unless somebody asks for one.
    """
    remembered = {one.contract_id: one for one in known if one.patient == patient}
    views = [
        look_at(reads, chain_id, patient, contract, remembered.get(contract.contract_id))
        for contract in reads.access_logs()
        if (contract.operator in institutions if only is None else contract.contract_id == only)
    ]
    if only is not None and not views:
        raise NotFound(f"{only.hex()} is no access-log contract of this network")
    return views


def look_at(
    reads: ContractReads, chain_id: bytes, patient: bytes, contract: ContractOf, known: Known | None = None
) -> ContractView:
    """Return what a contract says about a patient, as far as it can be checked."""
    contract_id = contract.contract_id
    batches = [decode_commitment(raw) for raw in reads.commitments(contract_id)]
    parameters = AccessLogParameters(contract.writers)
    if known is not None and known.batch >= len(batches):
        known = None  # fraud has undone what was thought final: impossible, unless the node shows another chain
    first = 0 if known is None else known.batch + 1
    found: list[LoggedAccess] = []
    trouble = ""
    gap = first
    # Backwards: old data goes first, and what is left must be connected.
    for number in range(len(batches) - 1, first - 1, -1):
        commitment = batches[number]
        try:
            if (commitment.contract_id, commitment.number) != (contract_id, number):
                raise InvalidInput(f"the node shows another batch in the place of batch {number}")
            raw = reads.data(contract_id, number)
            if raw is None:
                raise NotFound(f"the data of batch {number} cannot be had here")
            found[:0] = accesses_in(chain_id, parameters, commitment, raw, patient)
        except SpchainError as error:
            trouble, gap = str(error), number + 1
            break
    start, from_ms = BEGINNING, 0
    before: tuple[LoggedAccess, ...] = ()
    if gap > first:
        # What was known does not connect any more; begin at the gap, where the state may still be proved.
        begun = _head_at(reads, contract_id, patient, batches[gap - 1]) if gap < len(batches) else None
        from_ms = batches[gap - 1].until_ms
        if begun is None:
            return _view(contract, BEGINNING, found, trouble=trouble, from_ms=from_ms)
        start = begun
    elif known is not None:
        start, before, from_ms = known.start, known.accesses, known.from_ms
    return _held(reads, patient, contract, batches, start, [*before, *found], from_ms)


def _held(
    reads: ContractReads,
    patient: bytes,
    contract: ContractOf,
    batches: Sequence[BatchCommitment],
    start: AccessHead,
    found: Sequence[LoggedAccess],
    from_ms: int,
) -> ContractView:
    """Hold what was found against the patient's head at the newest batch that a node proves."""
    if not batches:
        return _view(contract, BEGINNING, (), head=BEGINNING, is_explained=True)
    for commitment in reversed(batches[-PROOF_ATTEMPTS:]):
        head = _head_at(reads, contract.contract_id, patient, commitment)
        if head is None:
            continue
        number = commitment.number
        until = [one for one in found if one.number <= number]
        chosen = explain(start, until, head)
        accesses = [*(until if chosen is None else chosen), *(one for one in found if one.number > number)]
        is_explained = chosen is not None
        return _view(contract, start, accesses, head=head, batch=number, is_explained=is_explained, from_ms=from_ms)
    trouble = "the node proves no state of this contract; ask one that watches it"
    return _view(contract, start, found, trouble=trouble, from_ms=from_ms)


def remember(patient: bytes, views: Sequence[ContractView]) -> Memory:
    """Return what of this look a later one may rest on: what is final and was confirmed by a proof."""
    known = []
    for view in views:
        if view.is_explained and view.batch is not None and view.final_count:
            last = min(view.batch, view.final_count - 1)
            accesses = tuple(
                msgspec.structs.replace(one, is_doubtful=False) for one in view.accesses if one.number <= last
            )
            known.append(Known(view.contract_id, patient, last, view.start, accesses, view.from_ms))
    return Memory(tuple(known))


def _head_at(
    reads: ContractReads, contract_id: bytes, patient: bytes, commitment: BatchCommitment
) -> AccessHead | None:
    raw = reads.proof(contract_id, commitment.number, head_key(patient))
    return None if raw is None else proved_head(commitment, patient, raw)


def _view(
    contract: ContractOf,
    start: AccessHead,
    accesses: Sequence[LoggedAccess],
    *,
    head: AccessHead | None = None,
    batch: int | None = None,
    is_explained: bool | None = None,
    from_ms: int = 0,
    trouble: str = "",
) -> ContractView:
    return ContractView(
        contract_id=contract.contract_id,
        operator=contract.operator,
        writers=contract.writers,
        accesses=tuple(accesses),
        head=head,
        batch=batch,
        final_count=contract.final_count,
        is_explained=is_explained,
        from_ms=from_ms,
        start=start,
        trouble=trouble,
    )
