# SPDX-License-Identifier: GPL-3.0-or-later
"""How many newcomers a young network stands: what one keyblock with each of many keys can do to its founding members."""

from itertools import count

import msgspec
import pytest

from consensus.committee import Committee
from consensus.standings import Standings
from ledger import testing
from ledger.miners import MinerHistory
from ledger.rules import MAIN_PARAMETERS, Parameters
from node.genesis_file import make_genesis, newcomers_that_stop
from tests.ledger.crypto.proof_kit import OTHER_KEY


def rules(seats: int) -> Parameters:
    return msgspec.structs.replace(MAIN_PARAMETERS, committee_size=seats)


def decide_alone(founders: int, newcomers: int, seats: int) -> bool:
    """Tell whether founding members are a quorum of the committee that the standings give, with so many newcomers of one keyblock each."""
    keys = [testing.key(number).public_key for number in range(founders + newcomers)]
    histories = [(key, MinerHistory(external_nano=250_000_000)) for key in keys[:founders]]
    histories += [(key, MinerHistory(keyblocks=1, chunk_keyblocks=1)) for key in keys[founders:]]
    parameters = rules(seats)
    standings = Standings(parameters.reputation, parameters.term_microblocks, max(1, newcomers), histories)
    committee = Committee(0, standings.committee(seats))
    return committee.is_quorum([i for i, m in enumerate(committee.members) if m.public_key in keys[:founders]])


@pytest.mark.parametrize(
    ("founders", "seats", "expected"), [(4, 13, 3), (4, 6, None), (7, 13, 4), (7, 10, None), (10, 13, None)]
)
def test_who_founds_a_network_learns_how_many_newcomers_could_stop_it(
    founders: int, seats: int, expected: int | None
) -> None:
    members = [testing.key(number).public_key for number in range(founders)]
    genesis = make_genesis("young", members, 0, parameters=rules(seats), verifying_key=OTHER_KEY)
    assert newcomers_that_stop(genesis) == expected
    if expected is None:
        assert all(decide_alone(founders, newcomers, seats) for newcomers in range(2 * seats))
    else:
        assert next(n for n in count() if not decide_alone(founders, n, seats)) == expected
