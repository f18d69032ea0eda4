# SPDX-License-Identifier: GPL-3.0-or-later
"""Write the golden evidence files' vectors: `python -m tests.vectors.evidence` from the root of the tree; see README.md."""

import json
from pathlib import Path

from ledger.blocks import SignedKeyblock
from ledger.codec import encode
from ledger.genesis import chain_id
from records.claims import Claim, GrantClaim, HistoryClaim, RecordClaim, RevocationClaim
from tests.records.contract_evidence_kit import READER, settled
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
    entries = [_entry(network, keyblock, kind, claim) for kind, claim in claims.items()]
    return json.dumps(entries + _of_contracts(), indent=1, ensure_ascii=False) + "\n"


def _of_contracts() -> list[dict[str, object]]:
    """Return vectors of claims about an off-chain contract, on a chain of their own."""
    network = Network()
    contract = settled(network)
    keyblock = network.settle()
    claims: dict[str, Claim] = {"operation": contract.operation(1), "contract-value": contract.value(1)}
    return [_entry(network, keyblock, kind, claim) for kind, claim in claims.items()]


def _entry(network: Network, keyblock: SignedKeyblock, kind: str, claim: Claim) -> dict[str, object]:
    raw, found = network.gather(keyblock, claim, READER)
    assert encode(GENESIS) in raw, "a file holds the genesis"
    return {
        "claim": kind,
        "keyblock": hash_of(keyblock).hex(),
        "chain_id": chain_id(GENESIS).hex(),
        "file": raw.hex(),
        "proven": found.proven,
    }


def main() -> int:
    """Write the file."""
    FILE.write_text(vectors(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
