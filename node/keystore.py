# SPDX-License-Identifier: GPL-3.0-or-later
"""Key files: an identity's seed, encrypted in the Web3 secret-storage format (version 3: scrypt, AES-128-CTR, Keccak MAC).

Beside the standard `crypto` section stands a readable `spchain` section with name, address and public keys, so that an
operator sees whose file it is without the passphrase. The MAC does not cover it; it is compared with the derived keys after decryption.
After a change of keys the section's `former` holds the seeds of the former generations, newest first: nonce and ciphertext of
ChaCha20-Poly1305 under a key that the newest seed gives. So one passphrase and one scrypt open all of them.
The optional `address` of the standard is left out: it would be an Ethereum address of the seed, which nobody here uses.
"""

import json
import os
import secrets
import stat
from dataclasses import replace
from enum import IntEnum
from pathlib import Path
from typing import Any, cast

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from ledger.errors import InvalidInput
from node.files import create_file, read_file, replace_file
from node.identity import Identity, PublicIdentity
from node.key_ring import KeyRing

MAX_KEY_FILE_BYTES = 16 * 1024
"""A key file has about 1 KiB, and 5 KiB with as many generations as a ring can hold."""
MAX_PASSPHRASE_BYTES = 1024
"""Longer than any passphrase; a wrong file given as the passphrase file is told apart from one."""
PASSPHRASE_VARIABLE = "SPCHAIN_PASSPHRASE"  # noqa: S105 -- the name of a variable, no secret
_NONCE_BYTES = 12
_FORMAT = 3
_FORMAT_OF_ONE_GENERATION = 2
_FORMAT_WITHOUT_REVEAL_KEY = 1
"""Key files of release 0.1. Files of old formats open for ever: nothing restores what they hold."""


class Cost(IntEnum):
    """Work of scrypt (its N; r = 8, p = 1): how long one guess of the passphrase takes."""

    STANDARD = 2**18
    """About a second and 256 MiB per guess: for keys that own something."""
    LIGHT = 2**12
    """About 15 ms and 4 MiB: for devnets and tests, whose passphrase lies beside the keys anyway."""


class _Public(msgspec.Struct, forbid_unknown_fields=True):
    format: int
    name: str
    address: str
    public_key: str
    reencryption_key: str
    chameleon_key: str
    network_key: str
    peer_id: str
    reveal_key: str = ""
    identifier: str = ""
    generation: int = 0
    former: str = ""


class _ScryptParameters(msgspec.Struct):
    # Bounds: a file from elsewhere must not make us allocate 128·N·r bytes without limit.
    n: int
    r: int
    p: int
    dklen: int
    salt: str


class _Crypto(msgspec.Struct):
    cipher: str
    cipherparams: dict[str, str]
    ciphertext: str
    kdf: str
    kdfparams: _ScryptParameters
    mac: str


class _KeyFile(msgspec.Struct):
    version: int
    crypto: _Crypto
    spchain: _Public
    id: str = ""


def write_key(path: Path, keys: Identity | KeyRing, passphrase: bytes, cost: int = Cost.STANDARD) -> None:
    """Encrypt keys into a new file of mode 0600; never overwrites. Raises `InvalidInput`."""
    _check_passphrase(passphrase)
    if path.exists():
        raise InvalidInput(
            f"{path} exists already; a key file is never overwritten: choose another name or move it away"
        )
    ring = keys if isinstance(keys, KeyRing) else KeyRing((keys,))
    create_file(path, _encrypted(ring, passphrase, cost), mode=0o600)


def replace_key(path: Path, ring: KeyRing, passphrase: bytes) -> None:
    """Put more generations of the same keys into a key file, at the same cost and in one step: a crash leaves the old file or the new one.

    Raises:
        InvalidInput: the passphrase does not open the present file, or the ring lacks a generation that is in it.
    """
    present = read_ring(path, passphrase)
    lacking = {identity.seed for identity in present.generations} - {identity.seed for identity in ring.generations}
    if lacking:
        raise InvalidInput(
            f"{path} holds keys of {present.identifier.hex()} that would be lost; write to another file instead"
        )
    replace_file(path, _encrypted(ring, passphrase, cost_of(path)), mode=0o600)


def cost_of(path: Path) -> int:
    """Return what a guess of a key file's passphrase costs, see `Cost`. Raises `InvalidInput`."""
    parsed = _parse(path, _read(path))
    _check_crypto(path, parsed)
    return parsed.crypto.kdfparams.n


def _encrypted(ring: KeyRing, passphrase: bytes, cost: int) -> bytes:
    from eth_keyfile.keyfile import create_keyfile_json  # noqa: PLC0415 -- a second of import time that public reads do not need

    document = create_keyfile_json(ring.newest.seed, passphrase, kdf="scrypt", iterations=int(cost))
    document.pop("address", None)
    document["spchain"] = msgspec.to_builtins(_describe(ring.public, _seal_former(ring)))
    return json.dumps(document, indent=2).encode() + b"\n"


def read_public(path: Path) -> PublicIdentity:
    """Return the readable part of a key file, unchecked against the secret. Raises `InvalidInput`.

    A file of release 0.1 does not tell the reveal key: it is empty then.
    """
    return _public(path, _parse(path, _read(path)))


def read_key(path: Path, passphrase: bytes) -> Identity:
    """Decrypt a key file and return the newest generation. Raises `InvalidInput`, see `read_ring`."""
    return read_ring(path, passphrase).newest


def read_ring(path: Path, passphrase: bytes) -> KeyRing:
    """Decrypt a key file. Raises `InvalidInput` for a wrong passphrase and for a file that is damaged or was changed."""
    raw = _read(path)
    parsed = _parse(path, raw)
    public = _public(path, parsed)
    _check_crypto(path, parsed)
    from eth_keyfile.keyfile import decode_keyfile_json  # noqa: PLC0415 -- as above

    try:
        secret = decode_keyfile_json(cast("dict[Any, Any]", json.loads(raw)), passphrase)
    except (ValueError, TypeError, KeyError) as error:
        raise InvalidInput(
            f"{path} does not open: wrong passphrase, or the file is damaged; try the right passphrase or the backup"
        ) from error
    try:
        ring = KeyRing.from_secret(secret + _open_former(secret, parsed.spchain.former), public.name)
    except InvalidInput as error:
        raise InvalidInput(f"{path}: {error}") from error
    expected = ring.public
    if public != (expected if public.reveal_key else replace(expected, reveal_key=b"")):
        raise InvalidInput(
            f"{path}: the readable public keys are not those of the secret; restore the file from its backup"
        )
    return ring


def _seal_former(ring: KeyRing) -> str:
    former = b"".join(identity.seed for identity in ring.generations[1:])
    if not former:
        return ""
    nonce = secrets.token_bytes(_NONCE_BYTES)
    sealed = ChaCha20Poly1305(ring.newest.former_secret).encrypt(nonce, former, ring.newest.address)
    return (nonce + sealed).hex()


def _open_former(seed: bytes, text: str) -> bytes:
    if not text:
        return b""
    newest = Identity(seed)
    try:
        sealed = bytes.fromhex(text)
        cipher = ChaCha20Poly1305(newest.former_secret)
        return cipher.decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], newest.address)
    except (InvalidTag, ValueError) as error:
        raise InvalidInput("the former generations of keys do not open; restore the file from its backup") from error


def passphrase_from_file(path: Path) -> bytes:
    """Return the first line of a file, without its line end. Raises `InvalidInput`."""
    line = read_file(path, MAX_PASSPHRASE_BYTES, "passphrase file").split(b"\n", 1)[0].removesuffix(b"\r")
    if not line:
        raise InvalidInput(f"passphrase file {path} begins with an empty line; put the passphrase on its first line")
    return line


def passphrase_from_environment() -> bytes | None:
    """Return the passphrase of `SPCHAIN_PASSPHRASE`, or None when it is not set."""
    value = os.environ.get(PASSPHRASE_VARIABLE)
    return None if value is None else value.encode()


def warn_if_readable(path: Path) -> str:
    """Return a warning when others may read a secret file; empty when all is well."""
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        return f"{path} has mode {mode:04o} and may be read by others; run: chmod 600 {path}"
    return ""


def _check_passphrase(passphrase: bytes) -> None:
    if not passphrase:
        raise InvalidInput("the passphrase is empty; choose one, or name a file with --passphrase-file")
    if len(passphrase) > MAX_PASSPHRASE_BYTES:
        raise InvalidInput(f"the passphrase has {len(passphrase)} bytes; at most {MAX_PASSPHRASE_BYTES} are accepted")


def _describe(public: PublicIdentity, former: str) -> _Public:
    return _Public(
        format=_FORMAT,
        name=public.name,
        address=public.address.hex(),
        public_key=public.public_key.hex(),
        reencryption_key=public.reencryption_key.hex(),
        chameleon_key=public.chameleon_key.hex(),
        network_key=public.network_key.hex(),
        peer_id=public.peer_id,
        reveal_key=public.reveal_key.hex(),
        identifier=public.identifier.hex(),
        generation=public.generation,
        former=former,
    )


def _read(path: Path) -> bytes:
    return read_file(path, MAX_KEY_FILE_BYTES, "key file")


def _parse(path: Path, raw: bytes) -> _KeyFile:
    try:
        parsed = msgspec.json.decode(raw, type=_KeyFile)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidInput(f"{path} is no SPChain key file ({error}); restore it from its backup") from error
    if parsed.version != 3 or parsed.spchain.format not in range(_FORMAT_WITHOUT_REVEAL_KEY, _FORMAT + 1):
        versions = f"version {parsed.version}, format {parsed.spchain.format}"
        raise InvalidInput(
            f"{path} has {versions}; this release reads version 3, formats 1 to {_FORMAT}: use a matching release"
        )
    return parsed


def _public(path: Path, parsed: _KeyFile) -> PublicIdentity:
    section = parsed.spchain
    sizes = {"address": 20, "public_key": 33, "reencryption_key": 33, "chameleon_key": 32, "network_key": 32}
    sizes["reveal_key"] = 0 if section.format == _FORMAT_WITHOUT_REVEAL_KEY else 48
    sizes["identifier"] = 20 if section.format > _FORMAT_OF_ONE_GENERATION else 0
    values: dict[str, bytes] = {}
    for field, size in sizes.items():
        text = getattr(section, field)
        try:
            values[field] = bytes.fromhex(text)
        except ValueError as error:
            raise InvalidInput(f"{path}: spchain.{field} is no hexadecimal number; restore the file") from error
        if len(values[field]) != size:
            raise InvalidInput(
                f"{path}: spchain.{field} has {len(values[field])} bytes instead of {size}; restore the file"
            )
    values["identifier"] = values["identifier"] or values["address"]
    return PublicIdentity(name=section.name, generation=section.generation, **values)


def _check_crypto(path: Path, parsed: _KeyFile) -> None:
    crypto, parameters = parsed.crypto, parsed.crypto.kdfparams
    known = crypto.kdf == "scrypt" and crypto.cipher == "aes-128-ctr" and parameters.dklen == 32
    # 128·N·r bytes: at most 1 GiB, four times the standard cost.
    power_of_two = parameters.n > 1 and parameters.n & (parameters.n - 1) == 0
    if not known or not power_of_two or parameters.n > 2**20 or parameters.r != 8 or parameters.p != 1:
        shown = f"{crypto.kdf} n={parameters.n} r={parameters.r} p={parameters.p}, {crypto.cipher}"
        raise InvalidInput(f"{path} is encrypted with {shown}; scrypt n≤2^20 r=8 p=1 and aes-128-ctr are accepted")
