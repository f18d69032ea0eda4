# SPDX-License-Identifier: GPL-3.0-or-later
"""Who brings a contract to its end and everybody's credits home: anybody may, so one account does it for all.

It freezes what is overdue, has withdrawals paid from final batches, and after the end balances, deposits that were never taken up, and
the bond. Proofs are made from the published data, as anybody could make them.
"""

from collections.abc import Callable, Iterator

from contracts.machines.micro_fees import balance_key, withdrawn_key
from contracts.requests import sign_request
from contracts.state_map import StateMap
from ledger.bodies import Body
from ledger.codec import decode
from ledger.contract_bodies import ClaimBalance, ForceOperation, FreezeContract, ReclaimDeposit, ReleaseBond
from ledger.contract_queries import batch_at, claimed_by, contract_at, final_count, forced_at, freezable_from
from ledger.contract_state import Contract, is_settled
from ledger.crypto.keys import PrivateKey
from ledger.rules import ContractRules
from simulation.reference_batches import Entries
from simulation.replica import Replica
from simulation.wishes import WAIT, Wait

EntriesAfter = Callable[[Replica, Contract, int], Entries | None]
"""State of a contract after a batch, from published data; None when a batch up to it is wrong."""


class Heir:
    """What is to be sent for one contract."""

    def __init__(
        self, chain_id: bytes, key: PrivateKey, contract_id: bytes, rules: ContractRules, entries_after: EntriesAfter
    ) -> None:
        self.must_force = False
        """Whether its operator seems to be gone, so that a request has to be forced."""
        self._contract_id = contract_id
        self._rules = rules
        self._entries_after = entries_after
        pay = b"\xc0"  # any bytes do: an operation that cannot be decoded is answered for like another
        self._request = sign_request(chain_id, key, contract_id, 0, [pay])

    def wish(self, replica: Replica) -> Body | Wait | None:
        """Return what the state asks for."""
        store = replica.disk.store
        contract = contract_at(store, self._contract_id)
        if contract is None:
            return WAIT
        following = store.head().height + 1
        if contract.status == "open":
            return self._hasten(replica, contract, following)
        if not is_settled(contract, following):
            return WAIT
        return next(self._owed(replica, contract, following), None)

    def _hasten(self, replica: Replica, contract: Contract, following: int) -> Body | Wait:
        store = replica.disk.store
        owed = forced_at(store, contract, contract.answered_count)
        # Times of microblocks never go back: what the head allows, the next one does.
        if owed is not None and store.head().timestamp_ms >= freezable_from(contract, owed, self._rules):
            return FreezeContract(self._contract_id)
        if self.must_force:
            if owed is None:
                return ForceOperation(self._contract_id, self._request)
            self.must_force = False  # once: whoever answers can close
        return next(self._claims(replica, contract, following), WAIT)

    def _owed(self, replica: Replica, contract: Contract, following: int) -> Iterator[Body]:
        yield from self._claims(replica, contract, following)
        for number in range(contract.answered_count, contract.forced_count):
            row = forced_at(replica.disk.store, contract, number)
            if row is not None and row.account:
                yield ReclaimDeposit(self._contract_id, number)
        if contract.bond_microcredit:
            yield ReleaseBond(self._contract_id)

    def _claims(self, replica: Replica, contract: Contract, following: int) -> Iterator[ClaimBalance]:
        store = replica.disk.store
        settled = is_settled(contract, following)
        window = self._rules.window_microblocks
        number = final_count(contract, lambda n: batch_at(store, contract, n), following, window) - 1
        entries = self._entries_after(replica, contract, number) if number >= 0 else {}
        for account in dict.fromkeys(key[2:] for key in sorted(entries or {}) if key[:2] in {b"mb", b"mw"}):
            claimed = claimed_by(store, self._contract_id, account)
            claim = claim_of(self._contract_id, account, number, entries or {}, settled=settled)
            withdrawn, balance = (
                decode(int, entry.value or b"\0", 16) for entry in (*claim.entries, *claim.entries)[:2]
            )
            owed = withdrawn - claimed.withdrawn_microcredit + (balance if settled else 0)
            if owed > 0 and not claimed.is_settled:
                yield claim


def claim_of(contract_id: bytes, account: bytes, number: int, entries: Entries, *, settled: bool) -> ClaimBalance:
    """Return a claim with its proofs."""
    keys = (b"m" + withdrawn_key(account), b"m" + balance_key(account))
    witness = StateMap(sorted(entries.items())).witness(keys[: 2 if settled else 1])
    return ClaimBalance(contract_id, account, number, witness)
