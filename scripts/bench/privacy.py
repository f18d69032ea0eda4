# SPDX-License-Identifier: GPL-3.0-or-later
"""Cost of what patients decide: encryption, grants, re-encryption, labels, evidence, finding records. Run `scripts/bench/privacy`."""

import argparse
import gzip
import json
import secrets
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console
from rich.table import Table

from ledger.bodies import LabelRecord
from ledger.body_checks import check_body
from ledger.chain import Chain
from ledger.codec import encode
from ledger.crypto import chameleon
from ledger.crypto.chameleon_proof import VerifyingKey, verify_proof
from ledger.crypto.development_key import DEVELOPMENT_VERIFYING_KEY
from ledger.crypto.reencryption import verify_capsule_fragment
from ledger.patients import PatientMicroblock, Record, RecordEnvelope, envelope_digest, record_id
from ledger.sharing import Grant
from node.identity import Identity
from records.chameleon_keys import DEVELOPMENT_PROVING_KEY
from records.chameleon_prover import Prover
from records.envelope import SealedRecord, check_blob, open_sealed, open_shared, parse_blob, seal
from records.grants import GrantChoice, PreparedGrant, decode_sealed, open_fragment, prepare_grant
from records.labelling import build_label, open_permission, permission_for, permit, read_request, request_label
from scripts.bench.big_ledger import Retrieval, grow, timed_us

BUNDLE = Path(__file__).parents[1] / "data" / "fhir" / "p01.json.gz"
PATIENT, READER, AUTHOR = (Identity(bytes([number]) * 32) for number in (1, 2, 3))
PROXIES = tuple(Identity(bytes([number]) * 32) for number in (4, 5, 6))
THRESHOLD = 2
CHAIN = Chain(bytes(32), DEVELOPMENT_VERIFYING_KEY)
LEDGERS = "10000,100000,1000000"


@dataclass(frozen=True)
class Step:
    """One thing that somebody does."""

    step: str
    """Its name."""
    who: str
    """Who does it."""
    median_us: float
    """Median duration, in microseconds."""
    size_bytes: int | None
    """Size of what comes out, in bytes."""


class Steps:
    """Measures one step after the other."""

    def __init__(self, rounds: int) -> None:
        self._rounds = rounds
        self.done: list[Step] = []

    def add(self, name: str, who: str, work: Callable[[], object], size: int | None = None) -> None:
        """Measure a step."""
        self.done.append(Step(name, who, timed_us(work, self._rounds), size))


def share(steps: Steps) -> None:
    """A record is encrypted, granted, re-encrypted by two of three proxies, verified and decrypted."""
    bundle = gzip.decompress(BUNDLE.read_bytes())
    sealed = seal(bundle, PATIENT.public.reencryption_key)
    steps.add(
        f"encrypt a bundle of {len(bundle) // 1000} KB",
        "author",
        lambda: seal(bundle, PATIENT.public.reencryption_key),
        len(sealed.blob),
    )
    steps.add("decrypt it", "patient", lambda: open_sealed(parse_blob(sealed.blob), PATIENT.reencryption))
    prepared = _grant()
    parcels = _sealed(prepared)
    steps.add(
        f"grant: split for {THRESHOLD} of {len(PROXIES)}, seal", "patient", lambda: _sealed(_grant()), len(parcels[0])
    )
    grant = Grant(
        number=0,
        terms=prepared.terms,
        verifying_key=PATIENT.public.public_key,
        granted_height=1,
        granted_timestamp_ms=0,
        revoked_height=0,
        deletions=(0,) * len(PROXIES),
        emergency_count=0,
        newest_emergency=0,
    )
    proxy, delegating = PROXIES[0], PATIENT.public.reencryption_key
    parcel = decode_sealed(parcels[0])
    steps.add(
        "open and verify a key fragment",
        "proxy",
        lambda: open_fragment(parcel, proxy.reencryption, proxy.address, grant, delegating),
    )
    blob = check_blob(sealed.blob, sealed.blob_id, sealed.capsule_digest)
    raws = [fragment.reencrypt(blob.capsule) for fragment in prepared.fragments[:THRESHOLD]]
    steps.add("re-encrypt", "proxy", lambda: prepared.fragments[0].reencrypt(blob.capsule), len(raws[0]))

    def verified(raw: bytes) -> object:
        return verify_capsule_fragment(
            raw,
            capsule=blob.capsule,
            verifying_key=grant.verifying_key,
            delegating_key=delegating,
            receiving_key=grant.terms.receiving_key,
        )

    steps.add("verify a capsule fragment", "reader", lambda: verified(raws[0]))
    fragments = [
        verify_capsule_fragment(
            raw,
            capsule=blob.capsule,
            verifying_key=grant.verifying_key,
            delegating_key=delegating,
            receiving_key=grant.terms.receiving_key,
        )
        for raw in raws
    ]

    def decrypt() -> bytes:
        return open_shared(blob, READER.reencryption, fragments)

    assert decrypt() == bundle, "the reader has what the author wrote"
    steps.add(f"decrypt with {THRESHOLD} fragments", "reader", decrypt)


def label(steps: Steps) -> None:
    """A record is hashed, checked by its opening, labelled with the patient's permission, and checked by proof."""
    record = _record(seal(b"{}", PATIENT.public.reencryption_key))
    digest, opening = envelope_digest(record.envelope), record.opening
    chameleon_hash, public_key = record.microblock.chameleon_hash, PATIENT.public.chameleon_key
    steps.add("keygen of the chameleon hash", "patient", lambda: chameleon.keygen(bytes(32)))
    steps.add("hash", "author", lambda: chameleon.hash_message(digest, opening), len(chameleon_hash))
    steps.add(
        "check by opening", "node", lambda: chameleon.check_opening(chameleon_hash, digest, opening), len(opening)
    )
    prover = Prover(DEVELOPMENT_PROVING_KEY, DEVELOPMENT_VERIFYING_KEY)
    other = envelope_digest(_envelope(record.envelope.blob_id, label="other"))

    def adapt() -> bytes:
        return prover.adapt(PATIENT.chameleon_secret, public_key, chameleon_hash, other)

    proof = adapt()
    steps.add("adapt: prove and verify", "institution", adapt, len(proof))
    key = VerifyingKey.decode(DEVELOPMENT_VERIFYING_KEY)
    assert verify_proof(key, public_key, chameleon_hash, other, proof), "the proof is good"
    steps.add("check by proof", "node", lambda: verify_proof(key, public_key, chameleon_hash, other, proof))

    def whole() -> LabelRecord:
        permission = permission_for(
            record,
            institution=AUTHOR.address,
            status="entered-in-error",
            label="misdiagnosis",
            replacement=None,
            may_erase=False,
            expiry_height=100,
        )
        asked = read_request(
            CHAIN.id, request_label(CHAIN.id, AUTHOR.signing, permission, ""), AUTHOR.public.public_key
        )
        document = permit(
            CHAIN.id,
            PATIENT.signing,
            asked.permission,
            PATIENT.chameleon_secret,
            AUTHOR.public.reencryption_key,
        )
        body = build_label(open_permission(CHAIN.id, document, AUTHOR.reencryption), record, public_key, 1, prover)
        check_body(body, CHAIN)
        return body

    steps.add("label: ask, permit, prove, check by a node", "all", whole, len(encode(whole())))


def _grant() -> PreparedGrant:
    choice = GrantChoice(
        patient=PATIENT.address,
        generation=0,
        grantee=READER.address,
        receiving_key=READER.public.reencryption_key,
        records=None,
        purposes=("TREAT",),
        from_ms=0,
        until_ms=10**12,
        threshold=THRESHOLD,
        proxies=tuple(proxy.address for proxy in PROXIES),
    )
    return prepare_grant(PATIENT.reencryption, PATIENT.signing, choice)


def _sealed(prepared: PreparedGrant) -> list[bytes]:
    return [prepared.seal(proxy.address, proxy.public.reencryption_key) for proxy in PROXIES]


def _envelope(blob_id: bytes, capsule_digest: bytes = bytes(32), label: str = "") -> RecordEnvelope:
    return RecordEnvelope(
        blob_id=blob_id,
        capsule_digest=capsule_digest,
        blob_bytes=1,
        author=AUTHOR.address,
        status="final",
        label=label,
        replaced_by=b"",
    )


def _record(sealed: SealedRecord) -> Record:
    envelope = _envelope(sealed.blob_id, sealed.capsule_digest)
    opening = chameleon.draw_opening(secrets.token_bytes(chameleon.ENTROPY_BYTES))
    link = PatientMicroblock(
        patient=PATIENT.address,
        patient_keyblock=bytes(32),
        previous=bytes(32),
        sequence=0,
        author=AUTHOR.address,
        chameleon_hash=chameleon.hash_message(envelope_digest(envelope), opening),
    )
    return Record(
        record_id=record_id(link),
        microblock=link,
        generation=0,
        envelope=envelope,
        opening=opening,
        label_count=0,
        may_erase=False,
        committed_height=1,
        committed_timestamp_ms=0,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="scripts/bench/privacy", description=__doc__)
    parser.add_argument("--rounds", type=int, default=50, help="calls of which the median is taken")
    parser.add_argument("--records", default=LEDGERS, help="sizes of the ledger, in records; 0 for none")
    parser.add_argument("--own", type=int, default=100, help="records of the patient that is looked for")
    parser.add_argument("--directory", type=Path, help="where the ledger lies while it is measured")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of tables")
    chosen = parser.parse_args(arguments)
    steps = Steps(chosen.rounds)
    share(steps)
    label(steps)
    sizes = [int(size) for size in chosen.records.split(",") if int(size)]
    ledgers: list[Retrieval] = []
    if sizes:
        with TemporaryDirectory(dir=chosen.directory, prefix="spchain-bench-") as directory:
            ledgers = grow(Path(directory), sizes, chosen.own, chosen.rounds, _tell)
    if chosen.json:
        found = {"steps": [asdict(step) for step in steps.done], "ledgers": [asdict(ledger) for ledger in ledgers]}
        print(json.dumps(found))
        return 0
    for table in _tables(steps.done, ledgers):
        Console().print(table)
    return 0


def _tell(text: str) -> None:
    # A large ledger takes minutes: what is known already goes to whoever waits.
    print(text, file=sys.stderr, flush=True)


def _tables(steps: Sequence[Step], ledgers: Sequence[Retrieval]) -> list[Table]:
    first = Table("step", "who", title="What patients, institutions and nodes do")
    for heading in ("median µs", "bytes"):
        first.add_column(heading, justify="right")
    for step in steps:
        first.add_row(
            step.step, step.who, f"{step.median_us:.0f}", "" if step.size_bytes is None else str(step.size_bytes)
        )
    if not ledgers:
        return [first]
    second = Table(title=f"{ledgers[0].found} records of one patient")
    third = Table("evidence of a", title="Evidence, by the size of the ledger in records")
    for heading in ("records in the ledger", "found by the patient µs", "found by a scan µs"):
        second.add_column(heading, justify="right")
    for ledger in ledgers:
        second.add_row(str(ledger.records), f"{ledger.retrieve_us:.0f}", f"{ledger.scan_us:.0f}")
        third.add_column(f"{ledger.records}: bytes", justify="right")
        third.add_column("verify µs", justify="right")
    for kind in zip(*(ledger.evidence for ledger in ledgers), strict=True):
        cells = [cell for one in kind for cell in (str(one.size_bytes), f"{one.verify_us:.0f}")]
        third.add_row(kind[0].claim, *cells)
    return [first, second, third]


if __name__ == "__main__":
    sys.exit(main())
