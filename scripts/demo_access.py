# SPDX-License-Identifier: GPL-3.0-or-later
"""The demo's part of the access log: a contract off the chain that every hospital logs into, and the patient's check of it."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from rich.console import Console

from contracts.machines.access_log import AccessLogParameters
from ledger.codec import encode
from node.access_audit import AuditResult, audit_all
from node.access_chain import head_key
from node.access_check import CheckedEntry
from node.access_reads import NodeReads
from node.actions import Actor
from node.contract_actions import machine_named, minimum_bond, open_contract, proved_value
from node.http_client import ApiError
from records.access_entries import is_own_read
from records.claims import ContractValueClaim
from scripts.demo_epochs import PATIENCE_S, DemoFailure

_IN_CONTRACT = ("final", "committed")


@dataclass
class AccessContract:
    """The access-log contract of the demo."""

    console: Console
    """Where the story is told."""
    contract_id: bytes = b""
    """The contract."""
    facts: list[tuple[str, str]] = field(default_factory=list)
    """Lines of the summary."""

    def open(self, operator: Actor, title: str, writers: Sequence[bytes]) -> None:
        """A hospital opens the contract, with a bond from its balance; from now on each node logs what it does there."""
        parameters = AccessLogParameters(tuple(sorted(writers)))
        bond = minimum_bond(operator)
        opened = open_contract(operator, machine_named("access_log"), encode(parameters), bond, PATIENCE_S)
        self.contract_id = opened.contract_id
        self.console.print(
            f"[green]✓[/] {title} opens an access log off the chain for {len(writers)} hospitals; "
            f"its bond is {bond // 10**6} credits",
            highlight=False,
        )

    def look(self, patient: Actor) -> AuditResult:
        """Return what the patient sees now; raises `DemoFailure` for anything that does not fit."""
        found = audit_all(patient, patient.keys.identifier, NodeReads(patient.client), self.contract_id)
        for log in found.logs:
            if log.trouble:
                raise DemoFailure(f"the log of {log.proxy.hex()} cannot be read: {log.trouble}")
        if found.checked.faults:
            raise DemoFailure(f"the access log does not fit: {found.checked.faults[0]}")
        return found

    def is_complete(self, patient: Actor) -> bool:
        """Tell whether every entry that a hospital shows stands in a committed batch, and the state's head proves it."""
        found = self.look(patient)
        (view,) = found.checked.contracts
        return bool(view.is_explained) and all(one.state in _IN_CONTRACT for one in found.checked.entries)

    def tell(self, found: AuditResult) -> None:
        """Say what the comparison came to."""
        (view,) = found.checked.contracts
        assert view.head is not None, "it is complete"
        own = sum(is_own_read(one.signed.entry) for one in found.checked.entries)
        final = sum(one.state == "final" for one in found.checked.entries)
        self.console.print(
            f"[green]✓[/] the patient holds {len(found.logs)} hospitals' logs against the contract: nothing is hidden",
            highlight=False,
        )
        self.console.print(
            f"  [dim]{view.head.count} accesses, {own} noted by the reader itself, {final} in final batches; "
            f"the state at batch {view.batch} proves it[/]",
            highlight=False,
        )
        self.facts.append(("access log", f"{view.head.count} accesses in the contract, as the hospitals show them"))

    def claim(self, patient: Actor) -> ContractValueClaim | None:
        """Return the claim that the newest final batch makes about the patient; None when there is none that a node proves."""
        contract = patient.client.contracts.contract(self.contract_id)
        number = contract.final_count - 1
        if number < 0:
            return None
        try:
            entry = proved_value(patient.client, contract, number, head_key(patient.keys.identifier))
        except ApiError:
            return None
        return ContractValueClaim(self.contract_id, number, entry)


def place_of(one: CheckedEntry) -> str:
    """Return where an entry stands, in a few words."""
    return one.state if one.batch is None else f"batch {one.batch}, {one.state}"
