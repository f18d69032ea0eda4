# SPDX-License-Identifier: GPL-3.0-or-later
"""The machines that a node ships, by name and version: what the ledger knows as `ledger.offchain.MachineRegistry`."""

from collections.abc import Callable, Iterable
from typing import Any

from contracts.execution import MACHINE_PREFIX, BoundMachine, execute
from contracts.machine import Machine
from contracts.requests import check_request
from ledger.codec import decoder
from ledger.crypto.keys import address_of
from ledger.errors import InvalidInput
from ledger.offchain import (
    MAX_OPERATION_BYTES,
    MAX_PARAMETERS_BYTES,
    ContractTerms,
    PayableKeys,
    Place,
    PreState,
    Replay,
)

_Decode = Callable[[bytes], Any]


class Registry:
    """Machines by name and version."""

    def __init__(self, machines: Iterable[Machine[Any, Any]]) -> None:
        """Take the machines; two of one name and version are a mistake of ours."""
        self._machines: dict[tuple[str, int], tuple[Machine[Any, Any], _Decode, _Decode]] = {}
        for machine in machines:
            identifier = (machine.name, machine.version)
            assert identifier not in self._machines, f"two machines {identifier}"
            self._machines[identifier] = (
                machine,
                decoder(machine.parameters, MAX_PARAMETERS_BYTES, name=f"parameters of {machine.name}"),
                decoder(machine.operations, MAX_OPERATION_BYTES, name=f"operation of {machine.name}"),
            )

    @property
    def machines(self) -> tuple[Machine[Any, Any], ...]:
        """All machines, by name and version."""
        return tuple(machine for _, (machine, _, _) in sorted(self._machines.items()))

    def bind(self, terms: ContractTerms) -> BoundMachine:
        """Return the machine of a contract with its parameters; raises `InvalidInput` for unknown ones."""
        found = self._machines.get((terms.machine, terms.version))
        if found is None:
            known = ", ".join(f"{name} {version}" for name, version in sorted(self._machines))
            raise InvalidInput(f"no machine {terms.machine!r} of version {terms.version} here; there are: {known}")
        machine, decode_parameters, decode_operation = found
        parameters = decode_parameters(terms.parameters)
        return BoundMachine(machine, decode_operation, parameters, address_of(terms.operator))

    def check_terms(self, terms: ContractTerms) -> None:
        """Check that a contract can be opened; raises `InvalidInput`."""
        self.bind(terms)

    def payable_keys(self, terms: ContractTerms, account: bytes) -> PayableKeys | None:
        """Return the state keys of an account's credits; None for a machine that takes no deposits. Raises `InvalidInput`."""
        payable = self.bind(terms).machine.payable
        if payable is None:
            return None
        keys = payable(account)
        return PayableKeys(MACHINE_PREFIX + keys.withdrawn, MACHINE_PREFIX + keys.balance)

    def check_request(self, chain_id: bytes, contract_id: bytes, request: bytes) -> None:
        """Check shape and signature of a request; raises `InvalidRequest`."""
        check_request(chain_id, contract_id, request)

    def replay(self, chain_id: bytes, terms: ContractTerms, place: Place, request: bytes, state: PreState) -> Replay:
        """Check and execute a request on a state; raises `InvalidRequest` if it may not be in a batch at all."""
        return execute(self.bind(terms), place, check_request(chain_id, terms.contract_id, request), state).replay
