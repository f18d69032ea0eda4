# SPDX-License-Identifier: GPL-3.0-or-later
"""From the state to the API's answers about off-chain contracts."""

from contracts.json_form import plain
from contracts.registry import Registry
from ledger.codec import encode
from ledger.contract_queries import batch_at, contract_at, contracts_from, final_count, forced_at, freezable_from
from ledger.contract_state import CommittedBatch, Contract, is_settled
from ledger.crypto.keys import address_of
from ledger.errors import InvalidInput
from ledger.rules import ContractRules
from ledger.store import Store
from node.api import contract_models as models
from node.api import views
from node.clock import moment


class ContractViews:
    """Answers about contracts out of one store."""

    def __init__(self, store: Store, registry: Registry) -> None:
        """Take what is committed, and the machines that this node ships."""
        self._store = store
        self._registry = registry

    @property
    def rules(self) -> ContractRules:
        """The network's rules for contracts."""
        return self._store.genesis.parameters.contracts

    def contract(self, contract_id: bytes) -> Contract:
        """Return a contract's state; raises `Problem`."""
        found = contract_at(self._store, contract_id)
        if found is None:
            raise views.not_found(f"there is no contract {contract_id.hex()}", "list them: GET /v1/contracts")
        return found

    def batch(self, contract: Contract, number: int) -> CommittedBatch:
        """Return a batch that counts; raises `Problem`."""
        found = batch_at(self._store, contract, number)
        if found is None:
            detail = (
                f"batch {number} does not count; contract {contract.terms.contract_id.hex()} has {contract.batch_count}"
            )
            raise views.not_found(detail, "list them: GET /v1/contracts/{contract}/batches")
        return found

    def final_count(self, contract: Contract) -> int:
        """Return how many batches of a contract are final now."""
        height = self._store.head().height
        return final_count(
            contract, lambda number: batch_at(self._store, contract, number), height, self.rules.window_microblocks
        )

    def is_settled(self, contract: Contract) -> bool:
        """Tell whether a contract has ended for good."""
        return is_settled(contract, self._store.head().height)

    def page(self, start: bytes, limit: int) -> models.Contracts:
        """Return up to `limit` contracts from an identifier on."""
        found = list(contracts_from(self._store, start, limit + 1))
        following = found[limit].terms.contract_id if len(found) > limit else None
        return models.Contracts(contracts=tuple(map(self.shown, found[:limit])), next_start=following)

    def shown(self, contract: Contract) -> models.Contract:
        """Return a contract as the API shows it."""
        terms = contract.terms
        try:
            bound = self._registry.bind(terms)
        except InvalidInput:
            bound = None
        freezable = self._freezable_ms(contract)
        return models.Contract(
            contract_id=terms.contract_id,
            machine=terms.machine,
            version=terms.version,
            is_known=bound is not None,
            parameters=terms.parameters.hex() if bound is None else plain(bound.parameters),
            raw_parameters=terms.parameters,
            operator=terms.operator,
            operator_address=address_of(terms.operator),
            status=contract.status,
            explanation=self._explanation(contract, freezable),
            is_settled=self.is_settled(contract),
            settles_height=contract.settles_height,
            opened_height=contract.opened_height,
            bond_microcredit=contract.bond_microcredit,
            escrow_microcredit=contract.escrow_microcredit,
            takes_deposits=bound is not None and bound.machine.payable is not None,
            batch_count=contract.batch_count,
            final_count=self.final_count(contract),
            window_microblocks=self.rules.window_microblocks,
            root=contract.root,
            until_ms=contract.until_ms,
            last_height=contract.last_height,
            forced_count=contract.forced_count,
            answered_count=contract.answered_count,
            freezable_ms=freezable,
        )

    def _freezable_ms(self, contract: Contract) -> int | None:
        waiting = forced_at(self._store, contract, contract.answered_count)
        if contract.status != "open" or waiting is None:
            return None
        return freezable_from(contract, waiting, self.rules)

    def _explanation(self, contract: Contract, freezable: int | None) -> str:
        waiting = contract.forced_count - contract.answered_count
        if contract.status == "open":
            if freezable is None:
                return "open: its operator takes requests and answers for all that was forced"
            owed = "1 forced request waits" if waiting == 1 else f"{waiting} forced requests wait"
            return f"open: {owed} for an answer; without a batch, anyone may freeze it from {moment(freezable)} on"
        ended = "ended by its operator" if contract.status == "closed" else "ended because of fraud or neglect"
        if not self.is_settled(contract):
            return (
                f"{ended}: takes no more requests; balances and bond are paid from height {contract.settles_height} on"
            )
        left = "balances, untaken deposits and the bond are paid to whoever claims them"
        return (
            f"{ended} and settled: {left}"
            if contract.escrow_microcredit or contract.bond_microcredit
            else (f"{ended} and settled: nothing is left in it")
        )

    def batches(self, contract: Contract, start: int, limit: int) -> models.ContractBatches:
        """Return up to `limit` batches from a number on."""
        end = min(contract.batch_count, start + limit)
        found = tuple(self.shown_batch(self.batch(contract, number)) for number in range(start, end))
        return models.ContractBatches(batches=found, next_start=end if end < contract.batch_count else None)

    def final_height(self, batch: CommittedBatch) -> int:
        """Return the height at which a batch is final."""
        return batch.height + self.rules.window_microblocks

    def shown_batch(self, batch: CommittedBatch) -> models.ContractBatch:
        """Return a batch as the API shows it."""
        commitment = batch.commitment
        final_height = self.final_height(batch)
        return models.ContractBatch(
            number=commitment.number,
            height=batch.height,
            final_height=final_height,
            status="final" if final_height <= self._store.head().height else "pending",
            requests=commitment.leaf_count,
            operations=commitment.operation_count,
            forced=len(commitment.forced),
            previous_root=commitment.previous_root,
            new_root=commitment.new_root,
            leaves_root=commitment.leaves_root,
            data_digest=commitment.data_digest,
            data_bytes=commitment.data_bytes,
            from_ms=commitment.from_ms,
            until_ms=commitment.until_ms,
            commitment=encode(commitment),
        )

    def forced(self, contract: Contract, start: int, limit: int) -> models.ForcedRequests:
        """Return up to `limit` forced requests from a number on; those whose rows are gone are passed over."""
        first = max(start, contract.cleared_count)
        end = min(contract.forced_count, first + limit)
        settled = self.is_settled(contract)
        found = []
        for number in range(first, end):
            row = forced_at(self._store, contract, number)
            if row is None:
                continue
            answered = number < contract.answered_count
            found.append(
                models.ForcedRequest(
                    number=number,
                    request_digest=row.request_digest,
                    height=row.height,
                    time_ms=row.time_ms,
                    due_batch=row.due_batch,
                    is_answered=answered,
                    account=row.account or None,
                    amount_microcredit=row.amount_microcredit if row.account else None,
                    is_reclaimable=settled and not answered and bool(row.account),
                )
            )
        return models.ForcedRequests(requests=tuple(found), next_start=end if end < contract.forced_count else None)
