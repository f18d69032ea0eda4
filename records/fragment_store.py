# SPDX-License-Identifier: GPL-3.0-or-later
"""The key fragments that a proxy holds: one for each grant, encrypted at rest, gone for good when the grant is revoked or over.

R1 `put` returns when the fragment survives a loss of power, `delete` when it does not come back: the file is synced.
R2 a fragment that is read was put here for this very grant: it is authenticated together with chain and grant.
R3 what is deleted is overwritten in the file (SQLite's `secure_delete`). A disk may keep old blocks all the same; they hold ciphertext
   under a key that is not on them.

All calls block; they are safe from several worker threads.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from ledger.crypto.reencryption import VerifiedKeyFragment, restore_key_fragment
from ledger.errors import StoreError
from ledger.state import DELETIONS_OWED, StateReader, scan
from records.blob_store import StorageFull
from records.sqlite_file import SqliteFile

KEY_BYTES = 32
MAX_FRAGMENTS = 200_000
"""About 100 MB. A consortium of a hundred nodes with 3 proxies a grant has room for six million living grants."""
SWEEP_FRAGMENTS = 1_000
"""Most revoked grants that one sweep works on: a transaction of milliseconds."""

_FORMAT = 1
_NONCE_BYTES = 12
_DOMAIN = b"spchain/fragment-at-rest/1"
_SCHEMA = """
CREATE TABLE fragments (
    grant_id BLOB PRIMARY KEY,
    until_ms INTEGER NOT NULL,
    sealed BLOB NOT NULL
) WITHOUT ROWID;
CREATE INDEX fragments_by_end ON fragments (until_ms)
"""
# A rollback journal that is cut to nothing leaves no copy behind, as a write-ahead log would. Mode DELETE would: of a file that is locked
# for one process SQLite keeps the journal and only clears its header.
_PRAGMAS = ("journal_mode = TRUNCATE", "synchronous = FULL", "secure_delete = ON")


class FragmentCorrupt(StoreError):
    """A kept fragment cannot be decrypted: the file was changed, or the key is another one. The patient can send it again."""


@dataclass(frozen=True, slots=True)
class Sweep:
    """What a sweep did."""

    revoked: int
    """Fragments of revoked grants that were deleted."""
    expired: int
    """Fragments of grants that are over, deleted."""
    owed: tuple[bytes, ...]
    """Grants whose deletion this proxy has yet to confirm on the chain: their fragments are gone, durably. At most `SWEEP_FRAGMENTS`."""


class FragmentStore:
    """A proxy's fragments in one file; one process at a time."""

    def __init__(self, path: Path, *, chain_id: bytes, key: bytes, capacity: int = MAX_FRAGMENTS) -> None:
        """Open or create the file.

        Args:
            path: the file; its folder exists.
            chain_id: the chain that the grants are on.
            key: 32 secret bytes for this purpose alone, derived from the node's seed.
            capacity: most fragments that are kept.

        Raises:
            StoreError: see `SqliteFile`.
        """
        assert len(key) == KEY_BYTES, f"the key has {KEY_BYTES} bytes, not {len(key)}"
        self._cipher = ChaCha20Poly1305(key)
        self._chain_id = chain_id
        self._capacity = capacity
        self._file = SqliteFile(path, chain_id=chain_id, table_format=_FORMAT, schema=_SCHEMA, pragmas=_PRAGMAS)

    def close(self) -> None:
        """Let another process open the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        with self._file.transaction() as connection:
            return int(connection.execute("SELECT count(*) FROM fragments").fetchone()[0])

    def put(self, grant_id: bytes, fragment: VerifiedKeyFragment, until_ms: int) -> None:
        """Keep the fragment of a grant durably, in place of one that was there.

        Raises:
            StorageFull: the capacity is reached, or the disk is full. Nothing was changed.
            StoreError: the disk fails.
        """
        nonce = os.urandom(_NONCE_BYTES)
        sealed = nonce + self._cipher.encrypt(nonce, bytes(fragment), self._bound(grant_id))
        with self._file.transaction() as connection:
            (others,) = connection.execute("SELECT count(*) FROM fragments WHERE grant_id != ?", (grant_id,)).fetchone()
            if others >= self._capacity:
                raise StorageFull(f"{others} key fragments are kept, as many as are allowed; raise the capacity")
            connection.execute("INSERT OR REPLACE INTO fragments VALUES (?, ?, ?)", (grant_id, until_ms, sealed))

    def get(self, grant_id: bytes) -> VerifiedKeyFragment | None:
        """Return the fragment of a grant, or None.

        Raises:
            FragmentCorrupt: it was changed on the disk.
            StoreError: the disk fails.
        """
        with self._file.transaction() as connection:
            row = connection.execute("SELECT sealed FROM fragments WHERE grant_id = ?", (grant_id,)).fetchone()
        if row is None:
            return None
        (sealed,) = row
        try:
            raw = self._cipher.decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], self._bound(grant_id))
        except (InvalidTag, ValueError) as error:
            raise FragmentCorrupt(
                f"the key fragment of grant {grant_id.hex()} is damaged; let the patient send it again"
            ) from error
        return restore_key_fragment(raw)

    def delete(self, grant_id: bytes) -> bool:
        """Forget a fragment for good; tell whether it was here. Raises `StoreError`."""
        with self._file.transaction() as connection:
            return connection.execute("DELETE FROM fragments WHERE grant_id = ?", (grant_id,)).rowcount > 0

    def sweep(self, reader: StateReader, proxy: bytes, head_timestamp_ms: int) -> Sweep:
        """Delete what the chain no longer allows to keep, then tell which deletions are to be confirmed on it.

        Time is the chain's, not this machine's: a wrong clock must not delete anything. Takes as long as there is to delete.

        Raises:
            StoreError: the disk fails; whatever is not deleted is not in `owed`.
        """
        owed = tuple(listed.grant_id for _, listed in scan(reader, DELETIONS_OWED, proxy, proxy, SWEEP_FRAGMENTS))
        with self._file.transaction() as connection:
            cursor = connection.executemany("DELETE FROM fragments WHERE grant_id = ?", ((name,) for name in owed))
            revoked = max(0, cursor.rowcount)
            expired = connection.execute("DELETE FROM fragments WHERE until_ms <= ?", (head_timestamp_ms,)).rowcount
        return Sweep(revoked, expired, owed)

    def _bound(self, grant_id: bytes) -> bytes:
        return _DOMAIN + self._chain_id + grant_id
