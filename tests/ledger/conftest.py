# SPDX-License-Identifier: GPL-3.0-or-later
"""Fixtures of the ledger's tests; builders are in `ledger.testing`."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ledger import testing
from ledger.genesis import Genesis, chain_id
from ledger.lmdb_store import LmdbStore, open_store
from ledger.memory_store import MemoryStore
from ledger.store import Store


@pytest.fixture(scope="session")
def genesis() -> Genesis:
    return testing.genesis()


@pytest.fixture(scope="session")
def chain(genesis: Genesis) -> bytes:
    return chain_id(genesis)


@pytest.fixture(params=["memory", "lmdb"])
def store(request: pytest.FixtureRequest, genesis: Genesis, tmp_path: Path) -> Iterator[Store]:
    made: Store = MemoryStore(genesis) if request.param == "memory" else open_store(tmp_path / "chain", genesis)
    yield made
    made.close()


@pytest.fixture
def reopen(genesis: Genesis, tmp_path: Path) -> Callable[[], LmdbStore]:
    """Open the store of this test's directory; close it before the next call."""
    return lambda: open_store(tmp_path / "chain", genesis)
