# SPDX-License-Identifier: GPL-3.0-or-later
"""Reads requests, outcomes and state entries for people: what `records.claims.ContractReader` asks for.

A machine that this program does not know is read as far as it goes without: signatures are checked, contents stay hexadecimal.
"""

from typing import Annotated, Any, NamedTuple

import msgspec

from contracts.json_form import key_to_text, operations_to_json, result_to_json, value_to_json
from contracts.machine import Machine, Outcome
from contracts.registry import Registry
from contracts.requests import check_request
from ledger.codec import decoder
from ledger.errors import InvalidInput
from ledger.offchain import MAX_OPERATIONS, MAX_OUTCOMES_BYTES, ContractTerms

_Outcomes = Annotated[tuple[Outcome, ...], msgspec.Meta(min_length=1, max_length=MAX_OPERATIONS)]
decode_outcomes = decoder(_Outcomes, MAX_OUTCOMES_BYTES, name="outcomes")
"""Decode the outcomes of a request; raises `InvalidInput`."""


class RequestRead(NamedTuple):
    """A request whose shape and signature are right."""

    sender: bytes | None
    """Address of who signed; None for what the chain itself has forced."""
    first_sequence: int
    """Number of its first operation among its sender's."""
    operations: tuple[Any, ...]
    """The operations, ready for JSON."""


class Reader:
    """Reads what the machines of a registry write."""

    def __init__(self, registry: Registry) -> None:
        """Take the machines that are known."""
        self._registry = registry

    def machine(self, terms: ContractTerms) -> Machine[Any, Any] | None:
        """Return the machine of a contract, None if it is not known here."""
        try:
            return self._registry.bind(terms).machine
        except InvalidInput:
            return None

    def read_request(self, chain_id: bytes, terms: ContractTerms, raw: bytes) -> RequestRead:
        """Check shape and signature of a request and read it. Raises `InvalidRequest`."""
        request = check_request(chain_id, terms.contract_id, raw)
        machine = self.machine(terms)
        operations = (
            [item.hex() for item in request.operations]
            if machine is None
            else operations_to_json(machine, request.operations)
        )
        return RequestRead(None if request.is_chain else request.sender, request.first_sequence, tuple(operations))

    def read_outcomes(self, raw: bytes) -> tuple[tuple[str, Any], ...]:
        """Return of each operation why it was refused, empty if it took effect, and what it answers. Raises `InvalidInput`."""
        return tuple((outcome.code, result_to_json(outcome.result)) for outcome in decode_outcomes(raw))

    def read_entry(self, terms: ContractTerms, key: bytes, value: bytes | None) -> tuple[str, Any]:
        """Return a state key and its value for people."""
        machine = self.machine(terms)
        if machine is None:
            return key.hex(), None if value is None else value.hex()
        return key_to_text(machine, key), None if value is None else value_to_json(machine, key, value)
