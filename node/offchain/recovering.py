# SPDX-License-Identifier: GPL-3.0-or-later
"""An operator as its journal leaves it: the state at the border, and every request since, executed again. Blocks; for worker threads."""

from collections.abc import Iterator

import msgspec

from contracts.journal import Accepted, JournalEntry
from contracts.operator import Batch, Operator, OperatorLimits
from contracts.registry import Registry
from ledger.contract_state import Contract
from ledger.crypto.keys import PrivateKey
from ledger.errors import SpchainError, StoreError
from node.offchain.journal_file import JournalFile


class OtherOperator(SpchainError):
    """The chain has what this journal does not: it is an old copy or gone, or the key operates elsewhere, too."""


class Recovered(msgspec.Struct, frozen=True):
    """What a journal holds of a contract."""

    operator: Operator
    """The operator, as it was."""
    border: int
    """The batch at the journal's border."""
    batches: tuple[Batch, ...]
    """Batches cut since, which the chain may have or not."""
    forced: int
    """Requests that the chain had forced and that the journal has taken over."""


def recover(
    journal: JournalFile,
    *,
    chain_id: bytes,
    contract: Contract,
    key: PrivateKey,
    machines: Registry,
    limits: OperatorLimits,
) -> Recovered:
    """Return a contract's operator, a fresh one if nothing has been promised yet.

    Raises:
        OtherOperator: the chain has batches and there is no journal of them.
        InvalidInput: the machine is unknown here, or its parameters are wrong.
        StoreError: the journal cannot be read, or does not follow from itself.
    """
    terms = contract.terms
    if journal.border(terms.contract_id) is None:
        if contract.batch_count:
            raise OtherOperator(
                f"the journal of contract {terms.contract_id.hex()} is gone: what was promised is not known, so nothing more may be "
                "promised. Put the journal back"
            )
        journal.open_contract(terms.contract_id, contract.until_ms)
    border, start = journal.border(terms.contract_id), journal.start(terms.contract_id)
    assert border is not None, "it was opened above"
    operator = Operator(chain_id, terms, key, machines, limits, start)
    if operator.state.root() != border.root:
        raise StoreError(f"the journal of contract {terms.contract_id.hex()} has another state than it says")
    forced = border.forced_count

    def counted() -> Iterator[JournalEntry]:
        nonlocal forced
        for entry in journal.entries(terms.contract_id):
            forced += isinstance(entry, Accepted) and entry.is_forced
            yield entry

    ready = operator.take_over(counted())
    batches = tuple(what for _, what in ready if isinstance(what, Batch))
    return Recovered(operator, border.number, batches, forced)
