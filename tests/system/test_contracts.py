# SPDX-License-Identifier: GPL-3.0-or-later
"""Off-chain contracts on four real nodes, through the command line: whoever signs at whichever node, also past a node that was killed."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from node.actions import NetworkRules
from node.devnet import Devnet
from tests.system.kit import PATIENCE_S, Load, Spchain, agree, ran, refused, until
from tests.system.test_evidence import newest_keyblock

pytestmark = [pytest.mark.system, pytest.mark.xdist_group("network")]

OPERATOR, USER, OTHER = 0, 1, 2
"""Nodes: whose institution operates, and at which two users are."""
CREDITS = 200_000


class Story:
    """The verbs of one contract."""

    def __init__(self, devnet: Devnet, spchain: Spchain) -> None:
        self.devnet, self.spchain = devnet, spchain
        self.contract = ""

    def run(self, verb: str, *arguments: str, at: int = USER) -> Any:  # noqa: ANN401 -- JSON of any shape
        """Run a verb about the contract at a node; returns its JSON."""
        named = (self.contract,) if self.contract else ()
        done = self.spchain("contract", verb, *named, *arguments, "--node", self.devnet.urls[at], "--json")
        return json.loads(ran(done))

    def key(self, node: int) -> tuple[str, str]:
        """Return the option that names a node's key file."""
        return ("--key", self.devnet.manifest.nodes[node].key_file)

    def account(self, node: int) -> str:
        return self.devnet.identity(node).address.hex()

    def inside(self, node: int, at: int = USER) -> Any:  # noqa: ANN401 -- JSON of any shape
        return self.run("show", "--account", self.account(node), at=at)["account"]

    def pay(self, amount: int, *arguments: str) -> Any:  # noqa: ANN401 -- JSON of any shape
        """Pay from the one user to the other, through the user's own node."""
        payment = {"recipient": self.account(OTHER), "amount_microcredit": amount, "reference": "77" * 32}
        return self.run("send", json.dumps({"pay": payment}), *self.key(USER), *arguments)


@pytest.fixture
def traffic(devnet: Devnet, rules: NetworkRules) -> Iterator[None]:
    """Some payments on the chain: an idle network makes few microblocks, and windows are counted in them."""
    with Load(devnet, rules, [3], at_once=1, pause_s=0.4):
        yield


@pytest.mark.usefixtures("traffic")
def test_users_at_any_node_pay_each_other_and_get_their_credits_back(
    devnet: Devnet, spchain: Spchain, tmp_path: Path
) -> None:
    story = Story(devnet, spchain)
    with devnet.client(USER) as client:
        supply = client.supply()
    opened = story.run(
        "open", "micro_fees", '{"largest_payment_microcredit": 50000}', *story.key(OPERATOR), at=OPERATOR
    )
    story.contract = opened["contract_id"]
    until(lambda: story.inside(USER)["next_sequence"] == 0, "the operator serves users of another node")
    story.run("fund", str(CREDITS), *story.key(USER))
    until(lambda: story.run("show")["answered_count"] == 1, "the operator takes the deposit up")

    # Through another node than the operator's: the receipt comes over the network, signed.
    sent = story.pay(30_000, "--save", "payment.receipt")
    assert sent["results"][0]["is_done"]
    assert sent["status"] in ("included", "committed")
    final = story.run("status", story.account(USER), "0", "--wait", "final", "--timeout", str(PATIENCE_S), at=OTHER)
    assert final["status"] == "final"
    assert story.inside(OTHER, at=OTHER)["balance_microcredit"] == 30_000
    # Watched by those who do not operate it.
    until(lambda: story.run("show", at=OTHER)["watch"]["batches"] > final["batch"], "another node watches")

    # The operator's node dies without warning; what it has promised is there when it is back.
    promised = story.pay(1_000, "--save", "second.receipt")
    devnet.kill(OPERATOR)
    withdraw = (
        "send",
        story.contract,
        '{"withdraw": {"amount_microcredit": 1}}',
        *story.key(USER),
        "--sequence",
        "2",
        "--timeout",
        "3",
    )
    refused(
        spchain("contract", *withdraw, "--node", devnet.urls[USER]), 4, "unreachable", "send the same requests again"
    )
    by_receipt = story.run("status", "--receipt", "second.receipt")
    assert by_receipt["batch"] == promised["batch"]
    devnet.restart(OPERATOR, timeout_s=PATIENCE_S)
    until(lambda: story.inside(USER)["next_sequence"] == 2, "the operator is back with what it has promised")
    story.run("status", "--receipt", "second.receipt", "--wait", "final", "--timeout", str(PATIENCE_S))

    # A proof for outside, of the receipt kept at first.
    miner = ("miner", "run", "--key", devnet.manifest.nodes[3].key_file, "--duty", "30", "--node", devnet.urls[3])
    ran(spchain(*miner, "--keyblocks", "2", timeout_s=3 * PATIENCE_S))
    until(lambda: len({newest_keyblock(spchain, url) for url in devnet.urls}) == 1, "one newest keyblock")
    story.run("proof", "--receipt", "payment.receipt", "-o", "payment.evidence", "--wait", str(PATIENCE_S), at=OTHER)
    trusted = newest_keyblock(spchain, devnet.urls[3])
    away = Spchain(tmp_path, tmp_path / "no-devnet")
    proved = json.loads(ran(away("verify", "payment.evidence", "--keyblock", trusted, "--json")))
    assert proved["facts"]["outcomes"] == [{"code": "", "result": CREDITS - 30_000}]

    # The end: everything comes back, to the last microcredit.
    with devnet.client(USER) as client:
        before = {node: client.account(devnet.identity(node).address).balance_microcredit for node in (USER, OTHER)}
    assert not story.run("challenge", *story.key(OTHER), at=OTHER)["is_wrong"]
    story.run("close", *story.key(OPERATOR), "--timeout", "60", at=OPERATOR)
    until(lambda: story.run("show")["is_settled"], "the contract is settled")
    claimed = {node: story.run("claim", *story.key(node), at=node)["amount_microcredit"] for node in (USER, OTHER)}
    assert claimed == {USER: CREDITS - 31_000, OTHER: 31_000}
    story.run("claim", "--bond", *story.key(OPERATOR), at=OPERATOR)
    agree(devnet)
    with devnet.client(OTHER) as client:
        after = {node: client.account(devnet.identity(node).address).balance_microcredit for node in (USER, OTHER)}
        shown = client.contracts.contract(bytes.fromhex(story.contract))
        ended = client.supply()
    assert (shown.escrow_microcredit, shown.bond_microcredit) == (0, 0)
    fee = 1_000
    assert all(claimed[node] - fee <= after[node] - before[node] <= claimed[node] for node in (USER, OTHER))
    assert ended.contracts_microcredit == supply.contracts_microcredit
