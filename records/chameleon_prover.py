# SPDX-License-Identifier: GPL-3.0-or-later
"""`adapt` of the chameleon hash: whoever knows the trapdoor proves that h opens to another message.

It stands here and not beside the verifier because it reads a key of 2 MB from a file, and because the native library draws the proof's
randomness from the operating system itself, as umbral does: two proofs of one statement differ, and none of that is agreed on.
A proof takes a tenth of a second, during which other Python threads run; callers with an event loop run it in a thread. Where
the native library is not to be had, importing this module fails: proofs can be checked there, but not made.

The library does not refuse a witness that satisfies nothing: it returns a proof that does not verify. Hence every proof is verified before
it leaves, and the trapdoor or opening is checked before it is used, so that the error can say what was wrong.
"""

import tempfile
import threading
from pathlib import Path

import groth16py

from ledger.crypto import chameleon
from ledger.crypto.chameleon_proof import VerifyingKey, public_inputs, verify_proof
from ledger.errors import InvalidInput
from records import chameleon_keys


class Prover:
    """Makes proofs for one network; safe to use from several threads."""

    def __init__(self, proving_key: Path, verifying_key: bytes) -> None:
        """Remember where the proving key is; it is loaded with the first proof, which takes 0.2 s longer.

        Args:
            proving_key: the file that the network's ceremony made.
            verifying_key: the network's key, from its genesis.
        """
        self._path = proving_key
        self._verifying_key = VerifyingKey.decode(verifying_key)
        self._lock = threading.Lock()
        self._loaded: groth16py.ProvingKey | None = None

    def adapt(self, trapdoor: bytes, public_key: bytes, chameleon_hash: bytes, message_digest: bytes) -> bytes:
        """Return 256 bytes that open h to the message, by the trapdoor of pk.

        Raises:
            InvalidInput: the trapdoor is not that of pk, an argument is malformed, or the proving key cannot be used.
        """
        if chameleon.public_key(trapdoor) != public_key:
            raise InvalidInput("the trapdoor is not that of this public key; use the key pair of the record's patient")
        # On this branch any ξ in the range will do.
        spare = chameleon.OPENING_MINIMUM
        return self._proved(public_key, chameleon_hash, message_digest, 1, spare, int.from_bytes(trapdoor, "big"))

    def prove_opening(self, public_key: bytes, chameleon_hash: bytes, message_digest: bytes, opening: bytes) -> bytes:
        """Return 256 bytes that open h to the message, by ξ, and tell nothing of it: nobody can tell them from an adapted proof.

        Raises:
            InvalidInput: ξ does not open h to the message, an argument is malformed, or the proving key cannot be used.
        """
        if not chameleon.check_opening(chameleon_hash, message_digest, opening):
            raise InvalidInput(
                f"the opening does not open {chameleon_hash.hex()} to this message; use that of its hash"
            )
        return self._proved(public_key, chameleon_hash, message_digest, 0, int.from_bytes(opening, "big"), 0)

    def _proved(
        self, public_key: bytes, chameleon_hash: bytes, message_digest: bytes, branch: int, opening: int, trapdoor: int
    ) -> bytes:
        inputs = public_inputs(public_key, chameleon_hash, message_digest)
        if inputs is None:
            raise InvalidInput(
                "public key and chameleon hash must be 32-byte big-endian numbers below r, and the message a 32-byte digest"
            )
        names = ("public_key", "chameleon_hash", "message", "by_trapdoor", "opening", "trapdoor")
        witness: dict[str, object] = dict(zip(names, (*inputs, branch, opening, trapdoor), strict=True))
        try:
            proof = groth16py.prove(self._key(), witness)
        except groth16py.WitnessError as error:
            raise InvalidInput(f"proving key {self._path} is for another circuit ({error}); make it anew") from error
        if not verify_proof(self._verifying_key, public_key, chameleon_hash, message_digest, proof):
            raise InvalidInput(
                f"the proof does not verify and is not given out: the witness is false, or proving key {self._path} is unsound"
            )
        return proof

    def _key(self) -> groth16py.ProvingKey:
        with self._lock:
            if self._loaded is None:
                content = chameleon_keys.read(self._path)
                if content.verifying_key != self._verifying_key.encoded:
                    raise InvalidInput(
                        f"proving key {self._path} belongs to another verifying key than the network's genesis names; "
                        "use the one of the network's ceremony"
                    )
                # The library loads from a file of its own only.
                with tempfile.TemporaryDirectory(prefix="spchain-") as directory:
                    unpacked = Path(directory) / "proving-key"
                    unpacked.write_bytes(content.body)
                    try:
                        self._loaded = groth16py.ProvingKey.load(str(unpacked))
                    except groth16py.SetupError as error:
                        raise InvalidInput(
                            f"proving key {self._path} is none that this version of groth16py reads ({error}); make it anew"
                        ) from error
            return self._loaded
