# SPDX-License-Identifier: GPL-3.0-or-later
"""What must never be found at a node (I9), in all the forms in which it could be there, and the search for it in raw bytes."""

import base64
import json
import zlib
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from node.identity import Identity

PART_BYTES = 1 << 26
"""Files are searched in parts, for a store's file is large."""


def words_of(bundle: Any) -> set[bytes]:  # noqa: ANN401 -- JSON of any shape
    """Return what identifies the patient or tells of an illness: names, identifiers, displays of codes."""
    found = set()
    for entry in bundle["entry"]:
        resource = entry["resource"]
        if resource["resourceType"] == "Patient":
            found |= {name["family"] for name in resource["name"]} | {resource["id"], resource["birthDate"]}
        for coding in resource.get("code", {}).get("coding", ()) if isinstance(resource.get("code"), dict) else ():
            found.add(coding["display"])
    return {word.encode() for word in found if len(word) >= 6}


def content_of(raw: bytes) -> set[bytes]:
    """Return pieces of a bundle as it is and as it is compressed before encryption, each in all forms: of any one the rest follows."""
    packed = zlib.compress(raw, 6)
    pieces = {raw[:64], raw[len(raw) // 2 :][:64], raw[-64:]}
    # The first and last bytes belong to the frame of a stream, zlib's or gzip's.
    pieces |= {packed[2:66], packed[len(packed) // 3 :][:64], packed[len(packed) // 2 :][:64], packed[-68:-4]}
    return {form for piece in pieces for form in _written(piece)}


def secrets_of(identity: Identity) -> dict[str, bytes]:
    """Return every secret that somebody's keys consist of, by name."""
    return {
        "seed": identity.seed,
        "signing": identity.signing.secret,
        "re-encryption": identity.reencryption.secret,
        "chameleon": identity.chameleon_secret,
        "network": identity.network_seed,
        "fragments": identity.fragments_secret,
        "former": identity.former_secret,
        "reveal": identity.reveal_secret,
    }


def forms_of(secret: bytes) -> set[bytes]:
    """Return a secret as bytes in both orders, each in all forms, and as the number that it is, as provers of statements take it."""
    orders = (secret, secret[::-1])
    numbers = {str(int.from_bytes(order, "big")).encode() for order in orders}
    return numbers | {form for order in orders for form in _written(order)}


def _written(piece: bytes) -> Iterator[bytes]:
    """Yield bytes as they are and as texts hold them: hexadecimal, base64, JSON strings and lists, and what Python shows in a log."""
    yield piece
    yield piece.hex().encode()
    yield piece.hex().upper().encode()
    yield from _base64(piece)
    yield repr(piece)[2:-1].encode()
    yield ",".join(map(str, piece)).encode()
    yield ", ".join(map(str, piece)).encode()
    with suppress(UnicodeDecodeError):
        yield json.dumps(piece.decode())[1:-1].encode()


def _base64(piece: bytes) -> Iterator[bytes]:
    for before in range(3):
        text = base64.b64encode(bytes(before) + piece)
        # What of the text depends on nothing but the piece: 4 characters hold 3 bytes.
        whole = text[-(-before * 8 // 6) : (before + len(piece)) * 8 // 6]
        yield whole
        yield whole.translate(bytes.maketrans(b"+/", b"-_"))


def found_in(places: Iterable[Path], needles: Iterable[bytes]) -> dict[bytes, list[str]]:
    """Return which needles stand in which files under some places, as they are on the disk."""
    wanted = set(needles)
    overlap = max(map(len, wanted)) - 1
    found: dict[bytes, list[str]] = {}
    for place in places:
        for path in place.rglob("*"):
            # Nodes are at work: a temporary file may be gone by now.
            with suppress(FileNotFoundError):
                if path.is_file():
                    for needle in _search(path, wanted, overlap):
                        found.setdefault(needle, []).append(str(path))
    return found


def _search(path: Path, wanted: set[bytes], overlap: int) -> set[bytes]:
    found: set[bytes] = set()
    with path.open("rb") as file:
        tail = b""
        while part := file.read(PART_BYTES):
            window = tail + part
            found |= {needle for needle in wanted - found if needle in window}
            tail = window[-overlap:] if overlap else b""
    return found
