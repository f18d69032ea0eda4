# SPDX-License-Identifier: GPL-3.0-or-later
"""How verbs reach nodes and keys: which URL, which passphrase, which address."""

import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from ledger.errors import InvalidInput
from node.cli.shell import note, printable, warn

if TYPE_CHECKING:
    from node.actions import Actor
    from node.client import NodeClient
    from node.identity import Identity
    from node.key_ring import KeyRing

TOKEN_VARIABLE = "SPCHAIN_API_TOKEN_FILE"  # noqa: S105 -- the name of a variable, no secret
_ADDRESS = re.compile(r"[0-9a-fA-F]{40}")
_PUBLIC_KEY = re.compile(r"[0-9a-fA-F]{66}")


def connect(url: str | None) -> "NodeClient":
    """Return a client of the node that a verb talks to."""
    from node.client import NodeClient
    from node.devnet import running_url
    from node.files import read_file
    from node.http_client import DEFAULT_URL

    token = None
    token_file = os.environ.get(TOKEN_VARIABLE)
    if token_file:
        token = (
            read_file(Path(token_file), 1024, "API token file").split(b"\n", 1)[0].strip().decode("ascii", "replace")
        )
    return NodeClient(url or running_url() or DEFAULT_URL, token=token)


def open_key(path: str, passphrase_file: str | None) -> "Identity":
    """Decrypt a key file and return the newest generation."""
    return open_ring(path, passphrase_file).newest


def open_ring(path: str, passphrase_file: str | None) -> "KeyRing":
    """Decrypt a key file with the passphrase from wherever it is."""
    from node.keystore import read_public, read_ring, warn_if_readable

    file = Path(path).expanduser()
    public = read_public(file)
    warn(warn_if_readable(file))
    return read_ring(file, passphrase(passphrase_file, file, f"passphrase of {public.name or file}"))


def passphrase(passphrase_file: str | None, key_file: Path, question: str, *, confirm: bool = False) -> bytes:
    """Return a passphrase: named file, environment, devnet, or the terminal. Raises `InvalidInput`."""
    from node.devnet_files import passphrase_beside
    from node.keystore import PASSPHRASE_VARIABLE, passphrase_from_environment, passphrase_from_file

    if passphrase_file is not None:
        return passphrase_from_file(Path(passphrase_file).expanduser())
    given = passphrase_from_environment()
    if given is not None:
        return given
    beside = passphrase_beside(key_file)
    if beside is not None:
        return passphrase_from_file(beside)
    if not sys.stdin.isatty():
        raise InvalidInput(
            f"no passphrase for {key_file}: name a file with --passphrase-file, or set {PASSPHRASE_VARIABLE}"
        )
    answer: str = typer.prompt(question, hide_input=True, confirmation_prompt=confirm, err=True)
    return answer.encode()


def address_in(text: str, what: str) -> bytes:
    """Return an address given as 40 hexadecimal digits or as a key file. Raises `InvalidInput`."""
    if _ADDRESS.fullmatch(text):
        return bytes.fromhex(text)
    from node.files import is_there
    from node.keystore import read_public

    file = Path(text).expanduser()
    if not is_there(file):
        raise InvalidInput(f"{what} {text!r} is neither an address (40 hexadecimal digits) nor a key file")
    return read_public(file).identifier


def party_in(client: "NodeClient", text: str, what: str) -> bytes:
    """Return an address given as such, as a key file, or as the name of a registered institution. Raises `InvalidInput`."""
    from node.files import is_there

    if _ADDRESS.fullmatch(text) or is_there(Path(text).expanduser()):
        return address_in(text, what)
    named = [found.address for found in client.institutions() if found.name == text]
    if len(named) > 1:
        shown = ", ".join(address.hex() for address in named)
        raise InvalidInput(f"{len(named)} institutions are called {text!r}: name one by its address, {shown}")
    if not named:
        raise InvalidInput(
            f"{what} {text!r} is neither an address, nor a key file, nor the name of an institution: spchain institution list"
        )
    return named[0]


def public_key_in(text: str) -> bytes:
    """Return a public key given as 66 hexadecimal digits or as a key file. Raises `InvalidInput`."""
    if _PUBLIC_KEY.fullmatch(text):
        return bytes.fromhex(text)
    from node.files import is_there
    from node.keystore import read_public

    file = Path(text).expanduser()
    if not is_there(file):
        raise InvalidInput(f"member {text!r} is neither a public key (66 hexadecimal digits) nor a key file")
    return read_public(file).public_key


def digest_in(text: str, what: str) -> bytes:
    """Return a 32-byte identifier. Raises `InvalidInput`."""
    if not re.fullmatch(r"[0-9a-fA-F]{64}", text):
        raise InvalidInput(f"{what} {text!r} is not 64 hexadecimal digits")
    return bytes.fromhex(text)


def actor(client: "NodeClient", key: str, passphrase_file: str | None, fee: int | None = None) -> "Actor":
    """Return who signs."""
    from node.actions import Actor

    ring = open_ring(key, passphrase_file)
    note(f"signing as {ring.newest.name or 'unnamed'} ({ring.newest.address.hex()}) at {client.url}")
    return Actor(client, ring, fee_microcredit=fee)


class Names:
    """Shows accounts by the names of institutions; others by their address."""

    def __init__(self, client: "NodeClient") -> None:
        """Ask a node for the institutions, when the first name is wanted."""
        self._client = client
        self._names: dict[bytes, str] | None = None

    def __call__(self, address: bytes) -> str:
        """Return name and the beginning of the address, or the whole address; safe to print."""
        if self._names is None:
            self._names = {found.address: found.name for found in self._client.institutions()}
        name = self._names.get(address)
        return address.hex() if name is None else f"{printable(name)} ({address.hex()[:8]}…)"
