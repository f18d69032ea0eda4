# SPDX-License-Identifier: GPL-3.0-or-later
"""All keys of one actor (institution, node, patient) from one 32-byte seed.

One seed means one file to back up and one passphrase. HKDF-SHA256 (RFC 5869) gives each purpose its own key under a fixed
label, so that no key tells anything about another. The labels are part of the format: changing one changes every key.
"""

import secrets
from dataclasses import dataclass

import base58
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from ledger.crypto import chameleon, unique_signature
from ledger.crypto.keys import PrivateKey
from ledger.crypto.reencryption import ReencryptionKey
from ledger.errors import InvalidInput

SEED_BYTES = 32
_SALT = b"spchain/identity/1"
_SIGNING = b"spchain/identity/signing/1"
_REENCRYPTION = b"spchain/identity/reencryption/1"
_CHAMELEON = b"spchain/identity/chameleon/1"
_NETWORK = b"spchain/identity/network/1"
_REVEAL = b"spchain/identity/reveal/1"
_FRAGMENTS = b"spchain/identity/fragments/1"
_FORMER = b"spchain/identity/former/1"

# A libp2p peer id is the identity multihash of the protobuf form of the public key: type Ed25519, 32 bytes.
_PEER_ID_PREFIX = bytes.fromhex("002408011220")


@dataclass(frozen=True, slots=True, repr=False)
class PublicIdentity:
    """What everyone may know of an actor; stands readable in the key file."""

    name: str
    """Name as shown to people."""
    address: bytes
    """20-byte account address of the signing key."""
    public_key: bytes
    """33-byte secp256k1 key that transactions, proposals and votes are checked with."""
    reencryption_key: bytes
    """33-byte Umbral key that records are encrypted to."""
    chameleon_key: bytes
    """32-byte public key of the chameleon hash."""
    network_key: bytes
    """32-byte Ed25519 key of the node on the network."""
    reveal_key: bytes
    """48-byte BLS key that checks what the owner reveals when a keyblock of its own begins an epoch."""
    identifier: bytes
    """20-byte address of the owner's first signing key, which a patient keeps through all changes of keys."""
    generation: int = 0
    """How often the owner has changed keys."""

    @property
    def peer_id(self) -> str:
        """The node's name on the network."""
        return base58.b58encode(_PEER_ID_PREFIX + self.network_key).decode()

    def __repr__(self) -> str:
        return f"PublicIdentity({self.name!r}, {self.address.hex()})"


class Identity:
    """All secret keys of one actor; its `repr` shows public things only."""

    __slots__ = (
        "_seed",
        "chameleon_secret",
        "former_secret",
        "fragments_secret",
        "network_seed",
        "public",
        "reencryption",
        "reveal_secret",
        "signing",
    )

    def __init__(self, seed: bytes, name: str = "") -> None:
        """Derive the keys from a 32-byte seed; raises `InvalidInput`."""
        if len(seed) != SEED_BYTES:
            raise InvalidInput(
                f"an identity's seed has {SEED_BYTES} bytes, not {len(seed)}; is this a key file of SPChain?"
            )
        self._seed = seed
        try:
            self.signing = PrivateKey(_derive(seed, _SIGNING))
        except ValueError as error:  # a chance of 2⁻¹²⁸
            raise InvalidInput("this seed gives no secp256k1 key; make a new one") from error
        self.reencryption = ReencryptionKey.from_seed(_derive(seed, _REENCRYPTION))
        self.chameleon_secret, chameleon_public = chameleon.keygen(_derive(seed, _CHAMELEON))
        self.network_seed = _derive(seed, _NETWORK)
        self.fragments_secret = _derive(seed, _FRAGMENTS)
        self.former_secret = _derive(seed, _FORMER)
        self.reveal_secret, reveal_public = unique_signature.keygen(_derive(seed, _REVEAL))
        network_key = Ed25519PrivateKey.from_private_bytes(self.network_seed).public_key()
        self.public = PublicIdentity(
            name=name,
            address=self.signing.address,
            public_key=self.signing.public_key,
            reencryption_key=self.reencryption.public_key,
            chameleon_key=chameleon_public,
            network_key=network_key.public_bytes(Encoding.Raw, PublicFormat.Raw),
            reveal_key=reveal_public,
            identifier=self.signing.address,
        )

    @classmethod
    def generate(cls, name: str = "") -> "Identity":
        """Make a new identity from the operating system's randomness."""
        return cls(secrets.token_bytes(SEED_BYTES), name)

    @property
    def seed(self) -> bytes:
        """The 32 secret bytes, for a keystore only."""
        return self._seed

    @property
    def name(self) -> str:
        """Name as shown to people."""
        return self.public.name

    @property
    def address(self) -> bytes:
        """20-byte account address."""
        return self.public.address

    @property
    def peer_id(self) -> str:
        """The node's name on the network."""
        return self.public.peer_id

    def __repr__(self) -> str:
        return f"Identity({self.name!r}, {self.address.hex()})"


def _derive(seed: bytes, label: bytes) -> bytes:
    return HKDF(SHA256(), SEED_BYTES, _SALT, label).derive(seed)
