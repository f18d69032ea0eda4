# SPDX-License-Identifier: GPL-3.0-or-later
"""How epoch 0 began: it follows from the genesis alone and is stored nowhere (`ledger.state.EPOCHS`)."""

from consensus.standings import Standings
from ledger.crypto.hashing import ZERO_DIGEST
from ledger.genesis import Genesis, chain_id
from ledger.miners import EpochRecord, MinerHistory, Seat


def founding_record(genesis: Genesis, root_hash: bytes) -> EpochRecord:
    """Return how epoch 0 began; `root_hash` is the hash of the microblock at height 0, which also names the state."""
    parameters = genesis.parameters
    histories = ((member.public_key, MinerHistory(external_nano=member.external_nano)) for member in genesis.committee)
    standings = Standings(parameters.reputation, parameters.term_microblocks, 0, histories)
    members = standings.committee(parameters.committee_size)
    return EpochRecord(
        keyblock=chain_id(genesis),
        root_height=0,
        root_hash=root_hash,
        root_round=0,
        miner=b"",
        reveal_key=b"",
        reputation_nano=0,
        fee_start=ZERO_DIGEST,
        target=parameters.work.limit,
        timestamp_ms=genesis.timestamp_ms,
        seats=tuple(Seat(member.public_key, member.reputation_nano) for member in members),
    )
