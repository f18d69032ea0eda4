# SPDX-License-Identifier: GPL-3.0-or-later
"""Files of the tree and how a broken house rule is reported: file:line and the remedy."""

from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("ledger", "consensus", "contracts", "records", "p2p", "node", "simulation")
HIDDEN_BUT_OURS = frozenset({".ci", ".gitignore"})
BUILT = frozenset({"build", "dist", "htmlcov", "__pycache__", "devnet", "node_modules"})


def files(*roots: str, suffix: str = "") -> Iterator[Path]:
    """Yield the tree's own files under `roots` (all by default), without environments, caches and builds."""
    for start in [ROOT / root for root in roots] if roots else [ROOT]:
        for path in sorted(start.iterdir()) if start.is_dir() else []:
            if (path.name.startswith(".") and path.name not in HIDDEN_BUT_OURS) or path.name in BUILT:
                continue
            if path.is_dir() and not path.name.endswith(".egg-info"):
                yield from files(str(path.relative_to(ROOT)), suffix=suffix)
            elif path.is_file() and path.name.endswith(suffix):
                yield path


def name(path: Path) -> str:
    """Return a path as reports show it, relative to the root."""
    return path.relative_to(ROOT).as_posix()


def report(broken: Iterable[str]) -> None:
    """Fail with one line per broken rule."""
    lines = list(broken)
    assert not lines, "\n" + "\n".join(lines)
