# SPDX-License-Identifier: GPL-3.0-or-later
"""One seed gives all keys of an actor, for ever the same ones."""

import pytest
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.peer.id import ID

from ledger.crypto import unique_signature
from ledger.crypto.chameleon import public_key
from ledger.crypto.reencryption import encrypt
from ledger.errors import InvalidInput
from node.identity import Identity

SEED = bytes(range(32))


def test_a_seed_gives_the_keys_of_the_golden_vector() -> None:
    public = Identity(SEED, "Hospital").public
    assert public.address.hex() == "f489c419d6934710b17e12c377841c9b823c5dce"
    assert public.public_key.hex() == "034e0837c40bd62414af907ac3a92848aecde422e527743d0973e0a4aeb92f91ca"
    assert public.reencryption_key.hex() == "03964bb14c38c114598ddf35daad14260038800b03857265b85d1c07316124edb2"
    assert public.chameleon_key.hex() == "20d29510cf3946e0a8f79fe21558be770b4fbd3932e3f0a029ab07d3d4d1de1f"
    assert public.network_key.hex() == "e638d256e51451e74137d3f3fe7f147e96eb5540b07b91aacd5fd72a8e70dbb4"
    assert public.reveal_key.hex() == (
        "879ec030c2002fbeac5209993df29477ac617090545df8041159469e3c149c6daee2e3d9a0bbd80baadec885d99a1b89"
    )


def test_the_peer_id_is_that_of_the_network_library() -> None:
    identity = Identity(SEED)
    assert identity.peer_id == str(ID.from_pubkey(create_new_key_pair(identity.network_seed).public_key))


def test_all_derived_secrets_differ() -> None:
    identity = Identity(SEED)
    secrets = {
        identity.seed,
        identity.signing.secret,
        identity.reencryption.secret,
        identity.chameleon_secret,
        identity.network_seed,
        identity.reveal_secret,
    }
    assert len(secrets) == 6


def test_the_derived_keys_belong_together() -> None:
    identity = Identity(SEED)
    capsule, ciphertext = encrypt(identity.public.reencryption_key, b"text")
    assert identity.reencryption.decrypt(capsule, ciphertext) == b"text"
    assert public_key(identity.chameleon_secret) == identity.public.chameleon_key
    revealed = unique_signature.sign(identity.reveal_secret, b"message")
    assert unique_signature.verify(identity.public.reveal_key, b"message", revealed)


def test_generated_identities_differ() -> None:
    assert Identity.generate().address != Identity.generate().address


@pytest.mark.parametrize("length", [0, 31, 33])
def test_a_seed_of_another_length_is_refused(length: int) -> None:
    with pytest.raises(InvalidInput, match=f"not {length}"):
        Identity(bytes(length))


def test_no_secret_shows_in_a_repr() -> None:
    identity = Identity(SEED, "Hospital")
    shown = repr(identity) + str(identity) + repr(identity.public)
    secrets = (identity.seed, identity.signing.secret, identity.network_seed, identity.chameleon_secret)
    for secret in (*secrets, identity.reveal_secret):
        assert secret.hex() not in shown
        assert repr(secret) not in shown
