# SPDX-License-Identifier: GPL-3.0-or-later
"""A patient's look at access-log contracts: what fits, who hides, who is late, and nodes that hand out something else."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import pytest

from contracts import execution
from contracts.execution import MACHINE_PREFIX
from contracts.machines import SHIPPED
from contracts.machines.access_log import AccessLogParameters, LogAccess
from contracts.operator import Batch
from contracts.registry import Registry
from contracts.requests import sign_request
from contracts.watcher import Watcher
from ledger import testing
from ledger.codec import encode
from ledger.crypto.keys import PrivateKey
from ledger.errors import InvalidInput, NotFound
from ledger.offchain import ContractTerms
from node.access_audit import ContractOf, Memory, decode_memory, look_at, look_at_all, remember
from node.access_chain import LoggedAccess, head_key, proved_head
from node.access_check import GRACE_MS, Checked, ContractView, ShownLog, check
from node.offchain.access_feed import operation_of
from node.proving import access_claim
from records.access_entries import SignedEntry, answer_of
from records.access_log import Access, AccessLog
from records.requests import RefusalReason
from tests.contracts.kit import CHAIN_ID, CONTRACT, OPERATOR, Desk

H1, H2, STRANGER = testing.key(1), testing.key(2), testing.key(7)
MARIA, PAUL = testing.key(50).address, testing.key(51).address
READER = testing.key(3)
WRITERS = tuple(sorted((H1.address, H2.address)))
TERMS = ContractTerms(CONTRACT, "access_log", 1, encode(AccessLogParameters(WRITERS)), OPERATOR.public_key)
LATER = 10**9


class Network(Desk):
    """An honest operator, two institutions with logs, and a node that shows it all: implements `ContractReads`."""

    def __init__(self, folder: Path) -> None:
        super().__init__(TERMS, Registry(SHIPPED))
        self.logs = {
            key.address: AccessLog(folder / key.address.hex(), chain_id=CHAIN_ID, key=key) for key in (H1, H2, STRANGER)
        }
        self.next: dict[bytes, int] = {}
        self.final_count = 0
        self.gone: set[int] = set()
        self.unproved: set[int] = set()
        self.now_ms = 1_000

    def asked(
        self, key: PrivateKey, patient: bytes = MARIA, *, refused: bool = False, reader: PrivateKey = READER
    ) -> SignedEntry:
        """An institution answers a reader, and writes it down."""
        return self.logs[key.address].append(
            Access(
                patient=patient,
                grant_id=b"g" * 32,
                records=(0,),
                requester=reader.public_key,
                purpose="TREAT",
                emergency=None,
                reason=RefusalReason.REVOKED if refused else None,
                request_digest=bytes(32),
                fragments_digest=bytes(32),
                head_height=1,
                timestamp_ms=self.now_ms,
            )
        )

    def log(self, key: PrivateKey, *operations: LogAccess, is_forced: bool = False, first: int | None = None) -> bytes:
        """An institution logs accesses in the contract."""
        self.now_ms += 10
        number = self.next.get(key.address, 0) if first is None else first
        raw = sign_request(CHAIN_ID, key, CONTRACT, number, operations)
        self.next[key.address] = max(self.next.get(key.address, 0), number + len(operations))
        self.send(raw, self.now_ms, is_forced=is_forced)
        return raw

    def both(self, key: PrivateKey, patient: bytes = MARIA, *, refused: bool = False) -> SignedEntry:
        signed = self.asked(key, patient, refused=refused)
        self.log(key, operation_of(signed.entry))
        return signed

    def done(self, *, final: bool = True) -> Batch:
        batch = self.cut(self.now_ms)
        if final:
            self.final_count = len(self.batches)
        return batch

    def shown(self, patient: bytes = MARIA) -> list[ShownLog]:
        """What honest institutions show."""
        found = [(address, log.page(patient, 0, 5)) for address, log in self.logs.items()]
        return [ShownLog(address, page.entries, is_complete=True) for address, page in found]

    def close(self) -> None:
        for log in self.logs.values():
            log.close()

    # what a node shows

    @property
    def contract(self) -> ContractOf:
        return ContractOf(CONTRACT, OPERATOR.address, WRITERS, self.final_count)

    def access_logs(self) -> Iterator[ContractOf]:
        yield self.contract

    def commitments(self, contract_id: bytes) -> Sequence[bytes]:
        assert contract_id == CONTRACT
        return [encode(batch.commitment) for batch in self.batches]

    def data(self, contract_id: bytes, number: int) -> bytes | None:
        assert contract_id == CONTRACT
        return None if number in self.gone else self.batches[number].data

    def proof(self, contract_id: bytes, number: int, key: bytes) -> bytes | None:
        assert contract_id == CONTRACT
        if number in self.unproved:
            return None
        watcher = Watcher(CHAIN_ID, TERMS, Registry(SHIPPED))
        for batch in self.batches[: number + 1]:
            assert watcher.follow(batch.commitment, batch.data) is None
        return encode(watcher.state.witness([key])[0])


@pytest.fixture
def network(tmp_path: Path) -> Iterator[Network]:
    made = Network(tmp_path)
    yield made
    made.close()


def view(network: Network, patient: bytes = MARIA, known: Memory | None = None) -> ContractView:
    return look_at(network, CHAIN_ID, patient, network.contract, None if known is None else known.known[0])


def checked(network: Network, shown: Sequence[ShownLog] | None = None, now_ms: int = LATER) -> Checked:
    return check(network.shown() if shown is None else shown, [view(network)], now_ms)


def kinds(found: Checked) -> list[tuple[str, bytes]]:
    return [(fault.kind, fault.institution) for fault in found.faults]


def without(shown: Sequence[ShownLog], institution: bytes, place: int) -> list[ShownLog]:
    return [
        msgspec.structs.replace(log, entries=log.entries[:place] + log.entries[place + 1 :])
        if log.institution == institution
        else log
        for log in shown
    ]


# ------------------------------------------------------------------ what fits


def test_accesses_of_all_institutions_come_to_the_proved_head(network: Network) -> None:
    network.both(H1)
    network.both(H2, refused=True)
    network.both(H1, PAUL)
    network.done()
    network.both(H2)
    network.done(final=False)
    found = view(network)
    assert (found.is_explained, found.batch, found.is_final, found.trouble) == (True, 1, False, "")
    assert found.head is not None
    assert (found.head.count, found.head.refused_count) == (3, 1)
    result = checked(network)
    assert result.faults == ()
    assert sorted(entry.state for entry in result.entries) == ["committed", "final", "final"]
    assert {entry.batch for entry in result.entries} == {0, 1}


def test_without_batches_and_without_accesses_all_is_well(network: Network) -> None:
    assert checked(network) == Checked((), (), (view(network),))
    network.both(H1, PAUL)
    network.done()
    found = view(network)
    assert (found.is_explained, found.accesses) == (True, ())
    assert checked(network).faults == ()


def test_what_is_under_way_is_waiting_and_what_never_comes_is_missing(network: Network) -> None:
    network.both(H1)
    network.done()
    late = network.asked(H1)
    soon = checked(network, now_ms=late.entry.timestamp_ms + GRACE_MS)
    assert ([entry.state for entry in soon.entries], soon.faults) == (["final", "waiting"], ())
    found = checked(network, now_ms=late.entry.timestamp_ms + GRACE_MS + 1)
    assert [entry.state for entry in found.entries] == ["final", "missing"]
    assert kinds(found) == [("missing", H1.address)]


def test_an_institution_that_no_contract_names_is_only_unlogged(network: Network) -> None:
    network.asked(STRANGER)
    network.both(H1)
    network.done()
    found = checked(network)
    assert {entry.signed.entry.proxy: entry.state for entry in found.entries} == {
        STRANGER.address: "unlogged",
        H1.address: "final",
    }
    assert found.faults == ()


def test_without_any_contract_entries_are_unlogged(network: Network) -> None:
    network.asked(H1)
    found = check(network.shown(), [], LATER)
    assert ([entry.state for entry in found.entries], found.faults) == (["unlogged"], ())


# ------------------------------------------------------------------ who hides


@pytest.mark.parametrize("refused", [False, True])
def test_a_proxy_that_hides_an_access_is_named(network: Network, refused: bool) -> None:
    for _ in range(3):
        network.both(H1)
    network.both(H2, refused=refused)
    network.done()
    honest = network.shown()
    assert checked(network, honest).faults == ()
    for place in range(3):
        assert kinds(checked(network, without(honest, H1.address, place))) == [("hidden", H1.address)]
    found = checked(network, without(honest, H2.address, 0))
    assert kinds(found) == [("hidden", H2.address)]
    assert found.faults[0].reader == READER.address


def test_a_log_written_anew_does_not_help(network: Network, tmp_path: Path) -> None:
    """The institution throws its log away and signs a new one, chained and complete, without the access."""
    network.both(H1)
    network.both(H1)
    network.done()
    network.logs[H1.address].close()
    (tmp_path / "anew").mkdir()
    network.logs[H1.address] = AccessLog(tmp_path / "anew" / "log", chain_id=CHAIN_ID, key=H1)
    network.asked(H1)
    assert ("hidden", H1.address) in kinds(checked(network))


def test_a_log_that_cannot_be_read_is_told_apart_from_one_that_hides(network: Network) -> None:
    network.both(H1)
    network.done()
    away = [msgspec.structs.replace(log, entries=(), is_complete=False) for log in network.shown()]
    assert kinds(checked(network, away)) == [("unread", H1.address)]


def test_an_entry_that_differs_from_what_was_logged_is_named(network: Network) -> None:
    signed = network.asked(H1)
    wrong = msgspec.structs.replace(operation_of(signed.entry), is_refused=True)
    network.log(H1, wrong)
    network.done()
    assert kinds(checked(network)) == [("changed", H1.address)]


def test_an_entry_that_was_logged_twice_is_named(network: Network) -> None:
    signed = network.both(H1)
    network.log(H1, operation_of(signed.entry))
    network.done()
    assert kinds(checked(network)) == [("twice", H1.address)]


def test_what_nobody_who_was_asked_has_logged_accuses_nobody(network: Network) -> None:
    """In a contract for everybody a stranger may write what he likes."""
    open_to_all = msgspec.structs.replace(
        view(network),
        writers=(),
        accesses=(LoggedAccess(0, 0, b"x" * 20, 5, LogAccess(MARIA, MARIA, bytes(32), is_refused=False), False),),  # noqa: FBT003
    )
    shown = [log for log in network.shown() if log.institution != STRANGER.address]
    assert check(shown, [open_to_all], LATER).faults == ()


# ------------------------------------------------------------------ what has no effect in a batch


def test_operations_of_others_and_of_no_writer_do_not_count(network: Network) -> None:
    network.both(H1)
    network.log(STRANGER, LogAccess(MARIA, READER.address, b"f" * 32, is_refused=False))
    network.done()
    found = view(network)
    assert (found.is_explained, len(found.accesses)) == (True, 1)


def test_a_forced_request_that_was_accepted_before_counts_once(network: Network) -> None:
    signed = network.asked(H1)
    network.log(H1, operation_of(signed.entry))
    network.log(H1, operation_of(signed.entry), is_forced=True, first=0)
    network.log(H1, operation_of(network.asked(H1).entry), is_forced=True)
    network.done()
    found = view(network)
    assert found.head is not None
    assert (found.head.count, len(found.accesses), found.is_explained) == (2, 2, True)
    assert checked(network).faults == ()


def test_a_request_that_was_refused_in_part_is_sorted_out(network: Network) -> None:
    """Too many patients for one challenge: the operator, watcher and judge refuse the later ones."""
    for number in range(200):
        network.log(H2, LogAccess(testing.key(100 + number).address, READER.address, bytes(32), is_refused=False))
    crowd = [testing.key(100 + number).address for number in range(63)]
    operations = [LogAccess(patient, READER.address, b"h" * 32, is_refused=False) for patient in crowd]
    network.log(H1, *operations, LogAccess(MARIA, READER.address, b"h" * 32, is_refused=False))
    assert network.answers[-1].outcomes[-1].code == "request_too_heavy"
    network.both(H1)
    network.done()
    found = view(network)
    assert (found.is_explained, len(found.accesses)) == (True, 1)
    assert checked(network).faults == ()


def test_requests_that_found_the_state_full_do_not_count(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    network.both(H1)
    monkeypatch.setattr(execution, "MAX_STATE_ENTRIES", 2)
    for _ in range(12):
        accesses = (LogAccess(patient, READER.address, b"h" * 32, is_refused=False) for patient in (MARIA, PAUL))
        network.log(H1, *accesses)
        assert [outcome.code for outcome in network.answers[-1].outcomes] == ["state_full"] * 2
    network.done()
    found = view(network)
    assert (found.is_explained, len(found.accesses)) == (True, 1)
    assert checked(network).faults == ()


# ------------------------------------------------------------------ nodes that hand out something else


def test_a_node_that_leaves_out_changes_or_exchanges_data_is_not_believed(network: Network) -> None:
    network.both(H1)
    network.done()
    network.both(H1)
    network.done()
    right = network.batches[1]
    for data in (network.batches[0].data, right.data[:-1] + b"\0", right.data + b"\0", b"", b"\xc1" * 100):
        network.batches[1] = Batch(right.commitment, data)
        found = look_at(network, CHAIN_ID, MARIA, network.contract)
        assert found.is_explained is not True
        assert found.trouble
    network.batches[1] = network.batches[0]
    found = look_at(network, CHAIN_ID, MARIA, network.contract)
    assert "another batch" in found.trouble


def test_a_proof_of_something_else_is_refused(network: Network) -> None:
    network.both(H1)
    network.both(H2, PAUL)
    first = network.done()
    network.both(H1)
    second = network.done()
    raw = network.proof(CONTRACT, 0, head_key(MARIA))
    assert raw is not None
    assert proved_head(first.commitment, MARIA, raw).count == 1
    other = network.proof(CONTRACT, 0, head_key(PAUL))
    absent = network.proof(CONTRACT, 0, MACHINE_PREFIX + b"nobody")
    assert other is not None
    assert absent is not None
    for commitment, wrong in ((second.commitment, raw), (first.commitment, other), (first.commitment, absent)):
        with pytest.raises(InvalidInput):
            proved_head(commitment, MARIA, wrong)
    for damaged in (b"", raw[:-1], raw + b"\0", b"\xc1"):
        with pytest.raises(InvalidInput):
            proved_head(first.commitment, MARIA, damaged)


def test_a_node_that_shows_fewer_batches_is_behind_and_never_hides_what_the_head_counts(network: Network) -> None:
    network.both(H1)
    network.done()
    network.both(H1)
    network.done()
    network.batches.pop()
    found = view(network)
    assert (found.is_explained, found.batch, len(found.accesses)) == (True, 0, 1)


def test_a_node_that_proves_nothing_says_so_and_the_data_still_serves(network: Network) -> None:
    network.both(H1)
    network.done()
    network.unproved = {0}
    found = view(network)
    assert (found.is_explained, found.head) == (None, None)
    assert "proves no state" in found.trouble
    assert kinds(checked(network, without(network.shown(), H1.address, 0))) == [("hidden", H1.address)]


def test_a_node_that_has_not_executed_the_last_batch_proves_the_one_before(network: Network) -> None:
    for _ in range(2):
        network.both(H1)
        network.done()
    network.unproved = {1}
    found = view(network)
    assert (found.is_explained, found.batch, len(found.accesses)) == (True, 0, 2)


def test_an_own_reading_is_shown_as_such_and_is_no_evidence_about_a_proxy(network: Network) -> None:
    own = network.asked(H1, reader=H1)
    page = network.logs[H1.address].page(MARIA, 0, 5)
    with pytest.raises(NotFound):
        access_claim(b"g" * 32, [page])
    served = network.asked(H1)
    page = network.logs[H1.address].page(MARIA, 0, 5)
    assert page.entries == (own, served)
    assert access_claim(b"g" * 32, [page]).entries == (served,)
    assert [answer_of(signed.entry) for signed in page.entries] == ["read", "re-encrypted"]
    assert answer_of(network.asked(H1, reader=H1, refused=True).entry) == "refused: revoked"


# ------------------------------------------------------------------ old data


def test_what_is_remembered_replaces_the_data_that_is_gone(network: Network) -> None:
    network.both(H1)
    network.done()
    network.both(H2)
    network.done()
    network.both(H1)
    network.done(final=False)
    memory = decode_memory(encode(remember(MARIA, [view(network)])))
    assert (memory.known[0].batch, len(memory.known[0].accesses)) == (1, 2)
    network.both(H2)
    network.done()
    network.gone = {0, 1}
    found = view(network, known=memory)
    assert (found.is_explained, len(found.accesses), found.from_ms, found.trouble) == (True, 4, 0, "")
    honest = network.shown()
    assert check(honest, [found], LATER).faults == ()
    hiding = without(honest, H1.address, 0)
    assert [fault.kind for fault in check(hiding, [found], LATER).faults] == ["hidden"]
    again = remember(MARIA, [found])
    assert len(again.known[0].accesses) == 4


def test_without_memory_the_look_begins_where_data_and_a_proof_are_left(network: Network) -> None:
    for _ in range(3):
        network.both(H1)
        network.now_ms += 1_000
        network.done()
    network.gone = {0}
    found = view(network)
    assert (found.is_explained, len(found.accesses)) == (True, 2)
    assert found.from_ms == network.batches[0].commitment.until_ms
    result = check(network.shown(), [found], LATER)
    assert [entry.state for entry in result.entries] == ["unlogged", "final", "final"]
    assert result.faults == ()
    network.unproved = {0}
    found = view(network)
    assert (found.is_explained, len(found.accesses)) == (None, 2)
    assert "batch 0 cannot be had" in found.trouble


def test_a_memory_of_another_patient_or_of_more_than_there_is_is_not_used(network: Network) -> None:
    network.both(H1)
    network.done()
    memory = remember(MARIA, [view(network)])
    (of_paul,) = look_at_all(network, CHAIN_ID, PAUL, {OPERATOR.address}, None, memory.known)
    assert (of_paul.is_explained, of_paul.accesses) == (True, ())
    beyond = msgspec.structs.replace(memory.known[0], batch=5, accesses=())
    assert len(look_at(network, CHAIN_ID, MARIA, network.contract, beyond).accesses) == 1


def test_a_memory_that_was_changed_does_not_come_to_the_head(network: Network) -> None:
    network.both(H1)
    network.done()
    memory = remember(MARIA, [view(network)])
    changed = msgspec.structs.replace(memory.known[0], accesses=())
    network.both(H1)
    network.done()
    found = look_at(network, CHAIN_ID, MARIA, network.contract, changed)
    assert found.is_explained is False
    assert [fault.kind for fault in check(network.shown(), [found], LATER).faults][-1] == "unexplained"
    for damaged in (b"", b"\xc1", encode(memory)[:-1]):
        with pytest.raises(InvalidInput):
            decode_memory(damaged)


def test_contracts_of_strangers_are_looked_at_only_when_named(network: Network) -> None:
    network.both(H1)
    network.done()
    assert len(look_at_all(network, CHAIN_ID, MARIA, {OPERATOR.address})) == 1
    network.gone = {0}
    assert look_at_all(network, CHAIN_ID, MARIA, WRITERS) == []
    (found,) = look_at_all(network, CHAIN_ID, MARIA, WRITERS, CONTRACT)
    assert found.trouble
    with pytest.raises(NotFound):
        look_at_all(network, CHAIN_ID, MARIA, WRITERS, bytes(32))
