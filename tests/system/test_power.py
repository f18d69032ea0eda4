# SPDX-License-Identifier: GPL-3.0-or-later
"""One node's computing power is raised to 60 % of the network's: its reputation rises as the formula says, and no faster."""

from fractions import Fraction
from pathlib import Path

import pytest

from ledger.rules import REPUTATION_UNIT
from tests.system.kit import agree, until
from tests.system.mining_kit import ReadChain, epoch_of, mining_network, reach_epoch

pytestmark = [pytest.mark.system, pytest.mark.xdist_group("network")]

WEAK_PERCENT = 4
STRONG_PERCENT = 18
"""Share of a core of the strong miner; the three weak ones have 12 together, so it has 60 % of all computing power."""
STRONG_KEYBLOCKS = 8
"""How many it is to find: more than a chunk holds."""


def test_sixty_per_cent_of_the_power_buy_reputation_only_as_the_formula_says(tmp_path: Path) -> None:
    with mining_network(tmp_path / "devnet", WEAK_PERCENT) as network, network.clients() as clients:
        strong = bytes.fromhex(network.manifest.nodes[0].public_key)
        reach_epoch(clients[0], 2)
        network.stop_miner(0)
        network.start_miner(0, STRONG_PERCENT)
        raised = epoch_of(clients[0])
        start = clients[0].miner(strong, raised).mining.keyblocks
        until(
            lambda: clients[0].miner(strong).mining.keyblocks >= start + STRONG_KEYBLOCKS,
            f"{STRONG_KEYBLOCKS} keyblocks of the strong miner",
            patience_s=300,
        )
        network.stop_miners()
        agree(network)
        chain = ReadChain(clients[0])
        chain.check_targets()
        # Every node tells the R that follows from the chain, in each epoch and for each miner.
        for client in clients:
            chain.check_reputations(client)
        _check_growth(chain, strong)
        # What the power was raised for: more than a third of the votes' weight could stop the network, and it is nowhere near.
        last = clients[0].miner(strong, chain.newest)
        assert last.weight_nano is not None
        assert last.weight_nano < REPUTATION_UNIT // 3
        found = Fraction(len([p for p in chain.positions(strong) if p >= raised]), chain.newest - raised)
        assert found > Fraction(last.weight_nano, REPUTATION_UNIT), "it finds more than its share of the votes"


def _check_growth(chain: ReadChain, miner: bytes) -> None:
    """Check that a miner's R grows by at most 1 / (2λ) for each keyblock of its own, from any epoch to any later one (R3)."""
    slope = Fraction(1, 2 * chain.genesis.parameters.reputation.flatness_keyblocks)
    newcomer = chain.reputation(miner, 0)
    for epoch in range(chain.newest + 1):
        keyblocks = sum(position < epoch for position in chain.positions(miner))
        assert chain.reputation(miner, epoch) <= newcomer + slope * keyblocks
