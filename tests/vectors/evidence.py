# SPDX-License-Identifier: GPL-3.0-or-later
"""Write the golden evidence files' vectors: `python -m tests.vectors.evidence` from the root of the tree; see README.md."""

import json
from pathlib import Path

from ledger.codec import encode
from ledger.genesis import chain_id
from records.claims import Claim, GrantClaim, HistoryClaim, RecordClaim, RevocationClaim
from tests.records.evidence_kit import GENESIS, PATIENT, Network, hash_of

FILE = Path(__file__).with_name("evidence.json")


def vectors() -> str:
    """Return the file's text. Labels are not among them: their proofs are random."""
    network = Network()
    network.register()
    network.write(3)
    granted = network.grant()
    revoked = network.grant(records=(), all_records=True)
    network.revoke(revoked, confirming=[2])
    keyblock = network.settle()
    claims: dict[str, Claim] = {
        "record": RecordClaim(PATIENT.address, 2),
        "history": HistoryClaim(PATIENT.address),
        "grant": GrantClaim(granted),
        "revocation": RevocationClaim(revoked),
    }
    entries = []
    for kind, claim in claims.items():
        raw, found = network.gather(keyblock, claim)
        assert encode(GENESIS) in raw, "a file holds the genesis"
        entries.append(
            {
                "claim": kind,
                "keyblock": hash_of(keyblock).hex(),
                "chain_id": chain_id(GENESIS).hex(),
                "file": raw.hex(),
                "proven": found.proven,
            }
        )
    return json.dumps(entries, indent=1, ensure_ascii=False) + "\n"


def main() -> int:
    """Write the file."""
    FILE.write_text(vectors(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
