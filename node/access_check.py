# SPDX-License-Identifier: GPL-3.0-or-later
"""Holds what institutions show a patient of their access logs against what an access-log contract has: whoever hides one is named. Pure.

Each institution signs twice for an access: in its own log, and in the contract. Its log can be withheld or written anew by whoever runs
its node; what is in a final batch cannot.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Literal

import msgspec

from contracts.machines.access_log import AccessHead
from ledger.crypto.keys import address_of
from node.access_chain import LoggedAccess
from records.access_entries import SignedEntry, entry_hash

GRACE_MS = 120_000
"""An entry that is older than this and stands in no batch is missing: a feed takes a second, a batch another one."""

EntryState = Literal["final", "committed", "waiting", "missing", "unlogged"]
"""In a final batch; in one that can still be challenged; not there yet; too late to be under way; its institution feeds no contract."""
FaultKind = Literal["hidden", "unread", "missing", "changed", "twice", "unexplained"]
"""The contract has an access that the institution does not show; the same, and its log cannot be read to its end; the contract lacks one
that it shows; they differ; it stands there twice; the published batches do not come to the patient's head in the state."""


class ContractView(msgspec.Struct, frozen=True):
    """What one contract says about a patient."""

    contract_id: bytes
    """The contract."""
    operator: bytes
    """Address of its operator."""
    writers: tuple[bytes, ...]
    """Who may log into it; none for everybody."""
    accesses: tuple[LoggedAccess, ...]
    """Accesses of the patient, in order."""
    head: AccessHead | None
    """The patient's head, from a state proof; None when no node has given one."""
    batch: int | None
    """The batch that the head was proved at."""
    final_count: int
    """How many batches are final: always the first ones."""
    is_explained: bool | None
    """Whether the accesses come to the head; None when that cannot be told."""
    from_ms: int
    """Time before which accesses are not known: the data of older batches is gone. 0 when all are known."""
    start: AccessHead
    """The patient's head before the first of these accesses."""
    trouble: str = ""
    """What could not be checked, for people."""

    @property
    def is_final(self) -> bool:
        """Whether the batch that the head was proved at is final."""
        return self.batch is not None and self.batch < self.final_count


class ShownLog(msgspec.Struct, frozen=True):
    """What one institution shows of its log."""

    institution: bytes
    """The institution."""
    entries: tuple[SignedEntry, ...]
    """Its entries about the patient, verified."""
    is_complete: bool
    """Whether its log could be read to its end."""


class CheckedEntry(msgspec.Struct, frozen=True):
    """An entry, and where it stands in a contract."""

    signed: SignedEntry
    """The entry."""
    state: EntryState
    """Whether it is in a contract."""
    contract_id: bytes
    """The contract; empty when it is in none."""
    batch: int | None
    """The batch."""


class Fault(msgspec.Struct, frozen=True):
    """Something that does not fit together."""

    kind: FaultKind
    """What."""
    institution: bytes
    """Who has to explain it: who signed, or the contract's operator."""
    detail: str
    """For people."""
    reader: bytes = b""
    """Whose access it is about; empty for all other faults."""


class Checked(msgspec.Struct, frozen=True):
    """The result."""

    entries: tuple[CheckedEntry, ...]
    """All entries that were shown."""
    faults: tuple[Fault, ...]
    """What does not fit."""
    contracts: tuple[ContractView, ...]
    """The contracts that were looked at."""


def check(shown: Sequence[ShownLog], contracts: Sequence[ContractView], now_ms: int) -> Checked:
    """Compare logs with contracts."""
    logged: dict[tuple[bytes, bytes], list[tuple[ContractView, LoggedAccess]]] = {}
    for view in contracts:
        for one in view.accesses:
            logged.setdefault((one.writer, one.access.entry), []).append((view, one))
    entries: list[CheckedEntry] = []
    faults: list[Fault] = []
    for log in shown:
        fed = [view for view in contracts if _feeds(log.institution, view)]
        for signed in log.entries:
            checked = _place(signed, logged.get((log.institution, entry_hash(signed.entry)), ()), fed, now_ms)
            entries.append(checked)
            faults += _faults_of(checked, logged)
    faults += _hidden(shown, logged)
    for view in contracts:
        if view.is_explained is False:
            detail = (
                f"the published batches of contract {view.contract_id.hex()} do not come to the head that its state has"
            )
            faults.append(Fault("unexplained", view.operator, detail))
    return Checked(tuple(entries), tuple(faults), tuple(contracts))


def _feeds(institution: bytes, view: ContractView) -> bool:
    """Tell whether an institution's accesses are to be expected in a contract."""
    return institution in view.writers or any(one.writer == institution for one in view.accesses)


def _place(
    signed: SignedEntry,
    found: Sequence[tuple[ContractView, LoggedAccess]],
    fed: Sequence[ContractView],
    now_ms: int,
) -> CheckedEntry:
    if found:
        view, one = min(found, key=lambda pair: pair[1].number >= pair[0].final_count)
        state: EntryState = "final" if one.number < view.final_count else "committed"
        return CheckedEntry(signed, state, view.contract_id, one.number)
    time_ms = signed.entry.timestamp_ms
    if not fed or all(time_ms < view.from_ms for view in fed):
        return CheckedEntry(signed, "unlogged", b"", None)
    if now_ms - time_ms <= GRACE_MS or any(view.trouble for view in fed):
        return CheckedEntry(signed, "waiting", b"", None)
    return CheckedEntry(signed, "missing", b"", None)


def _faults_of(
    checked: CheckedEntry, logged: Mapping[tuple[bytes, bytes], Sequence[tuple[ContractView, LoggedAccess]]]
) -> list[Fault]:
    entry = checked.signed.entry
    if checked.state == "missing":
        detail = f"its entry {entry.number} is in no contract, though it is {GRACE_MS // 1000} s old and more"
        return [Fault("missing", entry.proxy, detail)]
    found = logged.get((entry.proxy, entry_hash(entry)), ())
    said = (address_of(entry.requester), entry.reason is not None)
    faults = [
        Fault(
            "changed",
            entry.proxy,
            f"its entry {entry.number} and what it has logged at {_where(one)} name another reader or answer",
        )
        for _, one in found
        if (one.access.reader, one.access.is_refused) != said
    ]
    times = Counter(view.contract_id for view, _ in found)
    faults += [
        Fault("twice", entry.proxy, f"its entry {entry.number} stands {count} times in contract {contract_id.hex()}")
        for contract_id, count in times.items()
        if count > 1
    ]
    return faults


def _hidden(
    shown: Sequence[ShownLog], logged: Mapping[tuple[bytes, bytes], Sequence[tuple[ContractView, LoggedAccess]]]
) -> list[Fault]:
    """Return accesses that institutions have signed for in a contract and do not show.

    What others have logged says nothing: anybody may write into a contract without a list of writers.
    """
    asked = {log.institution for log in shown}
    told = {(log.institution, entry_hash(signed.entry)) for log in shown for signed in log.entries}
    complete = {log.institution for log in shown if log.is_complete}
    faults = []
    for (writer, digest), places in logged.items():
        if writer not in asked or (writer, digest) in told:
            continue
        _, one = places[0]
        kind: FaultKind = "hidden" if writer in complete else "unread"
        how = "leaves out" if kind == "hidden" else "cannot be read, and would have to show,"
        what = "a refusal" if one.access.is_refused else "an access"
        detail = f"its log {how} {what} that it has signed for at {_where(one)}"
        faults.append(Fault(kind, writer, detail, one.access.reader))
    return faults


def _where(one: LoggedAccess) -> str:
    return f"batch {one.number}, request {one.index}"
