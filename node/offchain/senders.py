# SPDX-License-Identifier: GPL-3.0-or-later
"""From whom an operator takes a first request: identities cost nothing, and room in a contract does.

Whoever the chain knows has paid a fee, or somebody else has for them. What is forced on the chain has paid its own and never comes by here.
"""

from typing import Any, Literal

from ledger.contract_queries import claimed_by
from ledger.errors import InvalidInput
from ledger.offchain import ContractTerms, MachineRegistry, PreState
from ledger.state import ACCOUNTS, INSTITUTIONS, KEY_HOLDERS, PATIENTS, StateReader, Table

Senders = Literal["known", "anyone"]
"""Accounts that the chain or the contract knows, or whoever has a key."""
_TABLES: tuple[Table[Any], ...] = (ACCOUNTS, PATIENTS, KEY_HOLDERS, INSTITUTIONS)


def is_known(
    chain: StateReader, machines: MachineRegistry, terms: ContractTerms, state: PreState, sender: bytes
) -> bool:
    """Tell whether the chain knows an account, or a contract does: a few look-ups.

    The chain knows whoever has an account that holds credits or has ever paid a fee (members, delegates and guardians among them),
    patients with all keys they ever had, and institutions. The contract knows whom its parameters name, who holds credits inside or has
    taken some out.

    Args:
        chain: the committed state.
        machines: the machines.
        terms: the contract's terms.
        state: the contract's state as it is now.
        sender: address of the sender.
    """
    if any(chain.get_state(table.prefix + sender) is not None for table in _TABLES):
        return True
    # An address is a digest: that one comes about in the parameters by chance is out of the question.
    if sender in terms.parameters or claimed_by(chain, terms.contract_id, sender).withdrawn_microcredit:
        return True
    try:
        keys = machines.payable_keys(terms, sender)
    except InvalidInput:
        return False
    return keys is not None and any(state.get(key) is not None for key in (keys.balance, keys.withdrawn))
