# SPDX-License-Identifier: GPL-3.0-or-later
"""What the tests of the store on disk share: microblocks with changes, an environment that fails, mounting."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import lmdb
import msgspec
import pytest

from ledger.lmdb_store import LmdbStore
from ledger.memory_store import MemoryStore
from ledger.store import BlockUpdate

Reopen = Callable[[], LmdbStore]


def update(
    store: LmdbStore | MemoryStore,
    changes: tuple[tuple[bytes, bytes | None], ...],
    size: int = 10,
    *,
    keeps_root: bool = False,
) -> BlockUpdate:
    head = store.head()
    following = msgspec.structs.replace(
        head, height=head.height + 1, block_hash=(head.height + 1).to_bytes(32, "big"), state_digest=os.urandom(32)
    )
    return BlockUpdate(following, b"b" * size, b"certificate", (), changes, (), keeps_root=keeps_root)


def entries(first: int, count: int) -> tuple[tuple[bytes, bytes], ...]:
    return tuple((b"x" + number.to_bytes(4, "big"), b"value %d" % number) for number in range(first, first + count))


def mount(*arguments: str | Path) -> None:
    """Mount, or skip the test where that is not allowed."""
    done = subprocess.run(["mount", *arguments], check=False, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"cannot mount here: {done.stderr.strip()}")


class Failing:
    """An LMDB environment of which one method fails."""

    def __init__(self, real: lmdb.Environment, name: str, error: Exception) -> None:
        self._real, self._name, self._error = real, name, error

    def __getattr__(self, name: str) -> object:
        if name == self._name:
            raise self._error
        return getattr(self._real, name)
