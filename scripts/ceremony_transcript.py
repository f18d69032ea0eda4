# SPDX-License-Identifier: GPL-3.0-or-later
"""Who contributed to a ceremony, read from the files themselves, since what snarkjs prints can be forged by a contributor's name.

A file of snarkjs is "magic, version, number of sections" and then sections "type, length, content", all little-endian. The list of
contributions is section 7 of a .ptau file and section 10 of a .zkey file. Later files carry the records of earlier contributions along
unchanged, so the SHA-256 of a record is a receipt: its owner finds it in the finished transcript, or has been left out.
"""

import hashlib
import struct
from pathlib import Path
from typing import NamedTuple

from ledger.errors import InvalidInput

G1, G2, HASH = 64, 128, 64
PTAU = (b"ptau", 7, 0, (3 * G1 + 2 * G2) + (6 * G1 + 3 * G2) + 216 + HASH)
"""Magic, section, what precedes the list, what precedes the type in a record: points, proofs of knowledge, partial hash, challenge."""
ZKEY = (b"zkey", 10, HASH, 3 * G1 + G2 + HASH)
"""As above: a list after the circuit's hash; in a record δ, the proof of knowledge, transcript."""
MAX_FILE_BYTES = 64 << 20
"""The files of this circuit have 0.4 to 1.2 MB, and 1 KB more for each contribution."""
MAX_CONTRIBUTIONS = 1024


class Contribution(NamedTuple):
    """One step of a phase."""

    name: str
    """As its contributor wrote it, printable."""
    is_beacon: bool
    """Whether the step is made of public randomness, which is how a phase ends."""
    beacon: bytes
    """The public randomness."""
    receipt: str
    """SHA-256 of the record, in hex."""


def contributions(path: Path) -> list[Contribution]:
    """Return the contributions of a .ptau or .zkey file, in order. Raises `InvalidInput` when it cannot be read as one."""
    if path.stat().st_size > MAX_FILE_BYTES:
        raise InvalidInput(f"{path} has {path.stat().st_size} bytes; no file of this ceremony is that long")
    data = path.read_bytes()
    kind = {PTAU[0]: PTAU, ZKEY[0]: ZKEY}.get(data[:4])
    if kind is None:
        raise InvalidInput(
            f"{path} is neither powers of tau nor a circuit's key of snarkjs; name the file of the ceremony"
        )
    try:
        return _contributions(data, *kind[1:])
    except (struct.error, IndexError, ValueError) as error:
        raise InvalidInput(f"{path} is damaged: its list of contributions cannot be read ({error})") from error


def _contributions(data: bytes, section: int, list_offset: int, fixed_bytes: int) -> list[Contribution]:
    content = _section(data, section)
    (count,) = struct.unpack_from("<I", content, list_offset)
    if count > MAX_CONTRIBUTIONS:
        raise ValueError(f"{count} contributions")
    position, found = list_offset + 4, []
    for _ in range(count):
        kind, length = struct.unpack_from("<II", content, position + fixed_bytes)
        end = position + fixed_bytes + 8 + length
        if end > len(content):
            raise ValueError("a record passes the end")
        name, beacon = _parameters(content[end - length : end])
        receipt = hashlib.sha256(content[position:end]).hexdigest()
        found.append(Contribution(name, kind == 1, beacon, receipt))
        position = end
    if position != len(content):
        raise ValueError("something follows the last record")
    return found


def _section(data: bytes, wanted: int) -> bytes:
    (count,) = struct.unpack_from("<I", data, 8)
    position, found = 12, []
    for _ in range(min(count, 64)):
        kind, length = struct.unpack_from("<IQ", data, position)
        position += 12
        if length > len(data) - position:
            raise ValueError(f"section {kind} passes the end")
        if kind == wanted:
            found.append(data[position : position + length])
        position += length
    if len(found) != 1 or position != len(data):
        raise ValueError(f"{len(found)} sections of type {wanted}, {position} of {len(data)} bytes")
    return found[0]


def _parameters(encoded: bytes) -> tuple[str, bytes]:
    """Read name (1, length, text), exponent of the beacon's iterations (2, number), beacon (3, length, bytes)."""
    name, beacon, position = b"", b"", 0
    while position < len(encoded):
        kind = encoded[position]
        if kind == 2:
            position += 2
            continue
        length = encoded[position + 1]
        value = encoded[position + 2 : position + 2 + length]
        position += 2 + length
        if kind == 1:
            name = value
        elif kind == 3:
            beacon = value
        else:
            raise ValueError(f"parameter {kind}")
    text = name.decode("utf-8", "replace")
    return text if text.isprintable() else ascii(text), beacon
