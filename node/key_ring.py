# SPDX-License-Identifier: GPL-3.0-or-later
"""All generations of one actor's keys, as one key file holds them.

A patient who changes keys stays the same patient: records and grants of the old generations need the old keys for ever. The identifier
is the address of the first generation. An institution has one generation. Which generation of the chain a key belongs to is told by
comparing public keys, never by counting: a ring that came back from an older backup may lack one in the middle.
"""

from collections.abc import Sequence
from dataclasses import replace

from ledger.errors import InvalidInput
from node.identity import SEED_BYTES, Identity, PublicIdentity

MAX_GENERATIONS = 64
"""More changes of keys than a life brings; a ring of as many fits into a key file and into the guardians' backup."""


class KeyRing:
    """Identities, newest first; `repr` shows public things only."""

    __slots__ = ("generations",)

    def __init__(self, generations: Sequence[Identity]) -> None:
        """Put identities together, newest first; raises `InvalidInput`."""
        if not 1 <= len(generations) <= MAX_GENERATIONS:
            raise InvalidInput(f"a key ring holds 1 to {MAX_GENERATIONS} generations of keys, not {len(generations)}")
        if len({identity.seed for identity in generations}) != len(generations):
            raise InvalidInput("a generation of keys is twice in the key ring; restore it from a backup")
        self.generations = tuple(generations)

    @classmethod
    def from_secret(cls, secret: bytes, name: str = "") -> "KeyRing":
        """Read what `secret` gives; raises `InvalidInput`."""
        if not secret or len(secret) % SEED_BYTES:
            raise InvalidInput(
                f"a key ring's secret is a multiple of {SEED_BYTES} bytes, not {len(secret)}; is this a key file of SPChain?"
            )
        if len(secret) > MAX_GENERATIONS * SEED_BYTES:
            raise InvalidInput(f"a key ring holds at most {MAX_GENERATIONS} generations; these are {len(secret)} bytes")
        starts = range(0, len(secret), SEED_BYTES)
        return cls([Identity(secret[start : start + SEED_BYTES], name) for start in starts])

    @property
    def secret(self) -> bytes:
        """The seeds, newest first: for a keystore and the guardians' backup only."""
        return b"".join(identity.seed for identity in self.generations)

    @property
    def newest(self) -> Identity:
        """The keys that sign."""
        return self.generations[0]

    @property
    def identifier(self) -> bytes:
        """Address of the first generation: by it everybody knows a patient; of an institution its account."""
        return self.generations[-1].address

    @property
    def public(self) -> PublicIdentity:
        """What everyone may know."""
        return replace(self.newest.public, identifier=self.identifier, generation=len(self.generations) - 1)

    def renewed(self, identity: Identity) -> "KeyRing":
        """Return the ring with one more generation, the newest; raises `InvalidInput` when it is full."""
        return KeyRing((identity, *self.generations))

    def holding(self, reencryption_key: bytes) -> Identity:
        """Return the generation with this public re-encryption key. Raises `InvalidInput`."""
        for identity in self.generations:
            if identity.public.reencryption_key == reencryption_key:
                return identity
        raise InvalidInput(
            f"none of the {len(self.generations)} generations of keys of {self.identifier.hex()} has re-encryption key "
            f"{reencryption_key.hex()}; use the owner's newest key file"
        )

    def __repr__(self) -> str:
        return f"KeyRing({self.newest.name!r}, {self.identifier.hex()}, {len(self.generations)} generations)"
