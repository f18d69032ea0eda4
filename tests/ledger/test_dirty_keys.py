# SPDX-License-Identifier: GPL-3.0-or-later
"""Dirty keys against a dumb model.

R1 A key is dirty from the block that changed it until its slice is folded.
R2 After a commit no more keys wait than the bound, unless one block brings more.
R3 A note of a height is needed exactly as long as some slice holds a key that became dirty since.
R4 A store that has written a note opens with it, however large one block has made it.
"""

from collections.abc import Callable

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from ledger.dirty_keys import DirtyKeys
from ledger.lmdb_store import LmdbStore
from ledger.store import BlockUpdate

keys = st.integers(0, 200).map(lambda number: b"%d" % number)
blocks = st.lists(st.lists(keys, max_size=30), max_size=30)


@given(blocks, st.integers(1, 60), st.sets(st.integers(0, 30)))
def test_keys_wait_within_the_bound_until_they_are_folded(
    sequence: list[list[bytes]], bound: int, roots: set[int]
) -> None:
    dirty, model = DirtyKeys(bound), dict[bytes, int]()
    for height, changed in enumerate(sequence):
        fresh = list(dict.fromkeys(dirty.fresh(changed)))
        assert set(fresh) == set(changed) - set(model)
        slices = dirty.due(len(fresh))
        folded = dirty.keys_of(slices)
        assert bool(folded) == (len(model) + len(fresh) > bound and bool(model))
        oldest = dirty.oldest_without(slices)
        for key in folded:
            del model[key]
        assert oldest == min(model.values(), default=None) or (oldest is not None and oldest <= min(model.values()))
        dirty.folded(slices)
        dirty.add(fresh, height)
        model.update(dict.fromkeys(fresh, height))
        assert len(dirty) == len(model) <= max(bound, len(fresh))
        assert set(dirty.keys_of(dirty.all_slices())) == set(model)
        if height in roots:
            dirty.folded(dirty.all_slices())
            model.clear()
            assert (len(dirty), dirty.all_slices(), dirty.oldest_without([])) == (0, [], None)


def test_slices_take_turns() -> None:
    dirty = DirtyKeys(1000)
    dirty.add([b"%d" % number for number in range(1000)], 1)
    seen: list[int] = []
    for _ in range(64):
        slices = dirty.due(16)
        dirty.folded(slices)
        dirty.add([b"again %d %d" % (len(seen), number) for number in range(16)], 2)
        seen += slices
    # Whatever arrives meanwhile, nothing waits for more than one round.
    assert seen[:256] == list(range(256)) or seen == list(range(len(seen)))


def test_a_block_that_changes_very_much_leaves_a_store_that_opens(reopen: Callable[[], LmdbStore]) -> None:
    """Batches full of revocations, of sixteen owed deletions each, come to more than a hundred megabytes of keys."""
    store = reopen()
    changes = tuple((b"x" * 500 + number.to_bytes(4, "big"), b"") for number in range(2**26 // 504 + 1))
    head = msgspec.structs.replace(store.head(), height=1, block_hash=b"1" * 32)
    store.commit(BlockUpdate(head, b"microblock", b"certificate", (), changes, ()))
    store.close()
    store = reopen()
    assert len(store._dirty) == len(changes)
    store.close()
