# SPDX-License-Identifier: GPL-3.0-or-later
"""Ciphertexts are erased where the operator wants it and the patient has allowed it, once, whatever crashes in between."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import trio

from ledger import queries
from ledger.bodies import ConfirmErasure
from ledger.errors import StoreError
from ledger.transactions import check_shape
from node import erasing as module
from node.actions import Actor
from node.client import NodeClient
from node.erasing import Erasing
from node.label_actions import apply_label, ask_for_label, open_label_request, permit_label, prover_of
from node.own_transactions import OwnTransactions
from node.submission import SubmitOutcome
from tests.node.care_cli import MARIA, client, node
from tests.node.care_kit import INSTITUTIONS, CareNode
from tests.node.care_net import Care, confirmations
from tests.node.kit import until
from tests.node.networks import MEMBERS, Net

__all__ = ["client", "node"]

HOSPITAL = INSTITUTIONS[1]


async def test_nodes_that_want_to_erase_and_confirm_also_one_that_was_away(tmp_path: Path) -> None:
    async with Net(tmp_path, erase_labelled=True) as net:
        care = Care(net)
        await care.found()
        (blob_id,) = net.nodes[0].blobs.iterate()
        away = net.nodes[3]
        await away.kill()
        await care.label(may_erase=True)
        await until(lambda: not any(one.blobs.has(blob_id) for one in net.up()))
        await until(lambda: len(list(queries.erasures(care.store, MARIA.address, 0))) == 3)
        await net.start(away)
        await until(lambda: not away.blobs.has(blob_id))
        await until(lambda: len(list(queries.erasures(care.store, MARIA.address, 0))) == 4)
        erased = {institution for institution, _ in queries.erasures(care.store, MARIA.address, 0)}
        assert erased == {member.address for member in MEMBERS}
        assert confirmations(net, ConfirmErasure) == 4


async def test_nodes_that_do_not_want_to_keep_what_was_labelled(tmp_path: Path) -> None:
    async with Net(tmp_path) as net:
        care = Care(net)
        await care.found()
        (blob_id,) = net.nodes[0].blobs.iterate()
        await care.label(may_erase=True)
        assert net.nodes[0].blobs.has(blob_id)
        assert confirmations(net, ConfirmErasure) == 0


async def test_without_the_patients_leave_nothing_is_erased(tmp_path: Path) -> None:
    async with Net(tmp_path, erase_labelled=True) as net:
        care = Care(net)
        await care.found()
        (blob_id,) = net.nodes[0].blobs.iterate()
        await care.label(may_erase=False)
        assert net.nodes[0].blobs.has(blob_id)
        assert confirmations(net, ConfirmErasure) == 0


# ------------------------------------------------------------------ one node, step by step


class Eraser:
    """An institution's erasing over the store of a lone node; what it sends is committed when the test says so."""

    def __init__(self, node: CareNode) -> None:
        self.node = node
        self.sent: list[bytes] = []
        self.is_behind = False
        self.transactions = OwnTransactions(
            store=node.store, key=HOSPITAL.signing, next_nonce=self._next_nonce, submit=self._submit
        )
        self.erasing = Erasing(node.store, node.blobs, self.transactions, lambda: self.is_behind, enabled=True)

    def _next_nonce(self, address: bytes) -> int:
        return self.node.next_nonce(address) + len(self.sent)

    async def _submit(self, raws: Sequence[bytes]) -> list[SubmitOutcome]:
        await trio.lowlevel.checkpoint()
        self.sent += raws
        return [SubmitOutcome(b"", accepted=True, reason="", detail="") for _ in raws]

    async def commit(self) -> None:
        raws, self.sent = self.sent, []
        outcomes = await self.node.submit(raws)
        assert all(outcome.accepted for outcome in outcomes), outcomes

    def confirmed(self) -> list[bytes]:
        return [institution for institution, _ in queries.erasures(self.node.store, MARIA.address, 0)]


def label(client: NodeClient, *, may_erase: bool = True) -> None:
    hospital = Actor(client, INSTITUTIONS[0])
    raw = ask_for_label(
        hospital, MARIA.address, 0, status="entered-in-error", label="wrong-patient", may_erase=may_erase
    )
    patient = Actor(client, MARIA)
    permission = permit_label(patient, open_label_request(client, hospital.rules.chain_id, raw))
    apply_label(hospital, permission, prover_of(hospital.rules.genesis))


def blob_of(node: CareNode) -> bytes:
    return queries.record(node.store, MARIA.address, 0).envelope.blob_id


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RETRY_S", 0.02)
    monkeypatch.setattr(module, "SWEEP_INTERVAL_S", 0.2)


LONG_S = 0.5
"""Many looks: enough for what must not happen to happen."""


async def test_what_a_crash_has_left_is_erased_and_confirmed_at_the_start(node: CareNode, client: NodeClient) -> None:
    await trio.to_thread.run_sync(lambda: label(client))
    eraser = Eraser(node)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(eraser.erasing.run)
        await until(lambda: len(eraser.sent) == 1)
        assert not node.blobs.has(blob_of(node))
        # What is under way is not sent again.
        await trio.sleep(LONG_S)
        (raw,) = eraser.sent
        assert check_shape(raw, node.chain_id).transaction.body == ConfirmErasure(MARIA.address, 0)
        await eraser.commit()
        await trio.sleep(LONG_S)
        assert eraser.sent == []
        assert eraser.confirmed() == [HOSPITAL.address]
        nursery.cancel_scope.cancel()


async def test_a_restart_between_erasing_and_confirming_confirms(node: CareNode, client: NodeClient) -> None:
    await trio.to_thread.run_sync(lambda: label(client))
    node.blobs.delete(blob_of(node))
    for _ in range(2):
        eraser = Eraser(node)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(eraser.erasing.run)
            await until(lambda: eraser.sent)  # noqa: B023 -- waited for right here
            nursery.cancel_scope.cancel()
        # Sent, and then killed before it was committed: the next start sends it again.
        assert len(eraser.sent) == 1
    await eraser.commit()
    later = Eraser(node)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(later.erasing.run)
        await trio.sleep(LONG_S)
        nursery.cancel_scope.cancel()
    assert later.sent == []


async def test_a_node_that_catches_up_erases_and_waits_with_its_confirmation(
    node: CareNode, client: NodeClient
) -> None:
    await trio.to_thread.run_sync(lambda: label(client))
    eraser = Eraser(node)
    eraser.is_behind = True
    async with trio.open_nursery() as nursery:
        nursery.start_soon(eraser.erasing.run)
        await until(lambda: not node.blobs.has(blob_of(node)))
        await trio.sleep(LONG_S)
        assert eraser.sent == []
        eraser.is_behind = False
        await until(lambda: len(eraser.sent) == 1)
        nursery.cancel_scope.cancel()


async def test_a_disk_that_fails_is_tried_again_and_nothing_is_confirmed_before(
    node: CareNode, client: NodeClient
) -> None:
    await trio.to_thread.run_sync(lambda: label(client))
    eraser, works = Eraser(node), node.blobs.delete

    def fails(blob_id: bytes) -> bool:
        raise StoreError(f"cannot delete {blob_id.hex()}")

    node.blobs.delete = fails  # type: ignore[method-assign]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(eraser.erasing.run)
        await trio.sleep(LONG_S)
        assert eraser.sent == []
        node.blobs.delete = works  # type: ignore[method-assign]
        await until(lambda: len(eraser.sent) == 1)
        assert not node.blobs.has(blob_of(node))
        nursery.cancel_scope.cancel()


async def test_a_copy_that_comes_back_is_erased_again_without_another_confirmation(
    node: CareNode, client: NodeClient
) -> None:
    blob = node.blobs.get(blob_of(node))
    await trio.to_thread.run_sync(lambda: label(client))
    eraser = Eraser(node)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(eraser.erasing.run)
        await until(lambda: eraser.sent)
        await eraser.commit()
        node.blobs.put(blob_of(node), blob)
        await until(lambda: not node.blobs.has(blob_of(node)))
        await trio.sleep(LONG_S)
        assert eraser.sent == []
        nursery.cancel_scope.cancel()


async def test_a_label_that_allows_no_erasing_leaves_the_ciphertext(node: CareNode, client: NodeClient) -> None:
    await trio.to_thread.run_sync(lambda: label(client, may_erase=False))
    eraser = Eraser(node)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(eraser.erasing.run)
        await trio.sleep(LONG_S)
        nursery.cancel_scope.cancel()
    assert node.blobs.has(blob_of(node))
    assert eraser.sent == []


async def test_work_that_lasts_until_the_next_look_is_due_ends_nothing(
    node: CareNode, client: NodeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when a disk is slow: the next look is due, or overdue, when there is nothing left to do."""
    monkeypatch.setattr(module, "SWEEP_INTERVAL_S", 0.0)
    await trio.to_thread.run_sync(lambda: label(client))
    eraser = Eraser(node)
    looks: list[None] = []
    look = eraser.erasing._find_all

    async def noted() -> None:
        looks.append(None)
        await look()

    monkeypatch.setattr(eraser.erasing, "_find_all", noted)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(eraser.erasing.run)
        await until(lambda: eraser.sent)
        await eraser.commit()
        before = len(looks)
        await until(lambda: not eraser.erasing._open and len(looks) > before + 3)
        nursery.cancel_scope.cancel()
    assert eraser.confirmed() == [HOSPITAL.address]
