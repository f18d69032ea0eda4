# SPDX-License-Identifier: GPL-3.0-or-later
"""Evidence reaches the chain once, whatever happens on the way, and costs nothing when somebody else was faster."""

import random
from collections.abc import AsyncIterator, Sequence

import pytest
import trio
from structlog.testing import capture_logs

from ledger import testing
from ledger.bodies import ReportMisbehaviour
from ledger.rules import MAX_COMMITTEE
from ledger.state import OFFENCES, State
from ledger.transactions import CheckedTransaction, check_transaction
from node.own_transactions import EXPIRY_MICROBLOCKS, OwnTransactions
from node.reporter import RETRY_S, SPREAD_S, Reporter
from node.submission import SubmitOutcome
from tests.node.api_kit import LoneNode

OWN, OFFENDER = 0, 3
SETTLED_S = SPREAD_S + 4 * RETRY_S
"""Long enough for whatever is to be reported, and for a repetition too many."""


class World:
    """A reporter over a node whose submissions are committed at once, unless the test says otherwise."""

    def __init__(self) -> None:
        self.node = LoneNode()
        self.submitted: list[CheckedTransaction] = []
        self.refuses = ""
        self.reporter = Reporter(
            store=self.node.store,
            transactions=OwnTransactions(
                store=self.node.store,
                key=testing.key(OWN),
                next_nonce=self.node.next_nonce,
                submit=self._submit,
            ),
            rng=random.Random(7),
        )

    async def _submit(self, raws: Sequence[bytes]) -> list[SubmitOutcome]:
        self.submitted += [check_transaction(raw, testing.rules_of(self.node.chain_id)) for raw in raws]
        if self.refuses:
            await trio.lowlevel.checkpoint()
            return [SubmitOutcome(b"", accepted=False, reason="storage", detail=self.refuses) for _ in raws]
        return await self.node.submit(raws)

    def report(self, *offenders: int) -> None:
        for offender in offenders:
            self.reporter.report(testing.votes_evidence(self.node.chain_id, offender))

    def commit(self, *raws: bytes) -> None:
        self.node.commit([check_transaction(raw, testing.rules_of(self.node.chain_id)) for raw in raws])

    def reported_by(self, sender: int, offender: int = OFFENDER) -> bytes:
        evidence = testing.microblocks_evidence(self.node.chain_id, offender)
        return testing.report_misbehaviour(self.node.chain_id, testing.key(sender), evidence)

    def is_known(self, offender: int = OFFENDER) -> bool:
        return State(self.node.store).get(OFFENCES, testing.key(offender).public_key) is not None


@pytest.fixture
async def world() -> AsyncIterator[World]:
    world = World()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.reporter.run)
        yield world
        nursery.cancel_scope.cancel()


async def test_a_proof_is_reported_once_however_often_it_comes(autojump_clock: object, world: World) -> None:
    for _ in range(3):
        world.report(OFFENDER)
        await trio.sleep(SETTLED_S)
    (report,) = world.submitted
    assert report.transaction.body == ReportMisbehaviour(testing.votes_evidence(world.node.chain_id, OFFENDER))
    assert report.transaction.fee_microcredit == world.node.genesis.parameters.minimum_fee_microcredit
    assert world.is_known()
    assert not world.reporter._waiting
    assert not world.reporter._transactions._sent


async def test_each_offender_is_reported(autojump_clock: object, world: World) -> None:
    world.report(1, 2, 3)
    await trio.sleep(SETTLED_S)
    assert all(world.is_known(offender) for offender in (1, 2, 3))
    assert [report.transaction.nonce for report in world.submitted] == [0, 1, 2]


async def test_what_the_chain_knows_is_not_reported_even_when_it_learns_it_just_before(
    autojump_clock: object, world: World
) -> None:
    world.report(OFFENDER)
    world.commit(world.reported_by(1))  # who drew a shorter pause
    await trio.sleep(SETTLED_S)
    world.report(OFFENDER)
    await trio.sleep(SETTLED_S)
    assert world.submitted == []


async def test_nobody_reports_itself(autojump_clock: object, world: World) -> None:
    world.report(OWN)
    await trio.sleep(SETTLED_S)
    assert world.submitted == []


async def test_a_report_that_waits_for_its_microblock_is_not_made_again(autojump_clock: object, world: World) -> None:
    world.node.commits = False
    world.report(OFFENDER)
    await trio.sleep(20 * SETTLED_S)
    assert len(world.submitted) == 1
    world.commit(world.submitted[0].raw)
    await trio.sleep(SETTLED_S)
    assert world.is_known()
    assert len(world.submitted) == 1


async def test_a_report_whose_nonce_another_transaction_took_is_made_again(
    autojump_clock: object, world: World
) -> None:
    world.node.commits = False
    world.report(OFFENDER)
    await trio.sleep(SETTLED_S)
    world.commit(testing.transfer(world.node.chain_id, testing.key(OWN), testing.key(1).address))
    world.node.commits = True
    await trio.sleep(SETTLED_S)
    assert [report.transaction.nonce for report in world.submitted] == [0, 1]
    assert world.is_known()


async def test_a_report_that_was_forgotten_or_expired_is_made_again(autojump_clock: object, world: World) -> None:
    world.node.commits = False
    world.report(OFFENDER)
    await trio.sleep(SETTLED_S)
    world.node.mempool.forget(world.submitted)  # as when its batch expires
    await trio.sleep(SETTLED_S)
    assert [report.transaction.nonce for report in world.submitted] == [0, 0]
    for _ in range(EXPIRY_MICROBLOCKS):
        world.commit()
    await trio.sleep(RETRY_S)
    first, *_, last = world.submitted
    assert last.transaction.expiry_height == first.transaction.expiry_height + EXPIRY_MICROBLOCKS


async def test_a_report_that_is_refused_is_made_again_and_told_once(autojump_clock: object, world: World) -> None:
    world.refuses = "no space left"
    with capture_logs() as logs:
        world.report(OFFENDER)
        await trio.sleep(SETTLED_S)
    assert len(world.submitted) > 2
    assert [entry["why"] for entry in logs] == ["no space left"]
    world.refuses = ""
    await trio.sleep(SETTLED_S)
    assert world.is_known()


async def test_no_more_proofs_wait_than_a_committee_has_members(autojump_clock: object, world: World) -> None:
    world.report(*range(OFFENDER, OFFENDER + MAX_COMMITTEE + 10))
    assert len(world.reporter._waiting) == MAX_COMMITTEE
