# SPDX-License-Identifier: GPL-3.0-or-later
"""`spchain miner`."""

import re
import signal
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ledger.errors import InvalidInput
from node.cli.access import connect, open_key
from node.cli.explained import counted
from node.cli.shell import JsonOption, NodeOption, PassphraseOption, emit, facts, note, warn

if TYPE_CHECKING:
    from rich.live import Live

    from node.api.mining_models import MiningWork
    from node.client import NodeClient
    from node.miner import Progress

app = typer.Typer(
    help="Mine keyblocks: they earn reputation, and with it votes, the lead and fees.", no_args_is_help=True
)

_END_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_RATE_LOOKS = 20
"""Looks at the progress that the shown rate is taken over: ten seconds."""
_NO_EPOCH = 2**63 - 1
"""Never reached: a reveal for it is refused as stale."""
_MEASURE_S = 0.25
"""Computing time for a quick measure of this machine."""

_DutyOption = Annotated[
    int, typer.Option("--duty", help="Share of one core to use, in per cent.", min=1, max=100, metavar="PERCENT")
]


@app.command()
def run(
    key: Annotated[
        str, typer.Option(help="Key file that mines; its account gets what keyblocks earn.", metavar="FILE")
    ],
    duty: _DutyOption = 25,
    keyblocks: Annotated[
        int | None, typer.Option(help="End when so many keyblocks are pinned and revealed; else never.", min=1)
    ] = None,
    passphrase_file: PassphraseOption = None,
    node: NodeOption = None,
    json_output: JsonOption = False,
) -> None:
    """Mine until SIGINT or SIGTERM, then say what came of it. One miner per key is enough.

    A keyblock is a solved puzzle: the first one that the committee takes into a microblock is pinned, earns its miner reputation and
    newly minted credits, and begins an epoch with a new committee. The miner then reveals the seed that the epoch's leaders are drawn
    from; a miner that ends before that costs the network a time-out. It shares no state with the node and may run on another
    machine; when the node is away, it waits for it.

    Example: spchain miner run --key hospital.json --node http://127.0.0.1:8080 --duty 50
    """
    from node.miner import Miner

    identity = open_key(key, passphrase_file)
    with connect(node) as asked:
        _ask_before(asked, identity.public.public_key)
    with (
        connect(asked.url) as searching,
        connect(asked.url) as watching,
        _signals_held(),
        _screen(quiet=json_output) as screen,
    ):
        miner = Miner(
            identity, searching=searching, watching=watching, duty_percent=duty, stop_after=keyblocks, told=screen.tell
        )
        screen.tell(f"mining for {identity.name or 'unnamed'} ({identity.address.hex()}) at {searching.url}")
        began_s = time.monotonic()
        miner.run(_has_signal, lambda progress: screen.show(_line(progress, screen.rate(progress.hashes), duty)))
        passed_s = time.monotonic() - began_s
    done = miner.progress()
    answer = {
        "miner": identity.public.public_key.hex(),
        "address": identity.address.hex(),
        "epoch": None if done.work is None else done.work.epoch,
        "reputation_nano": None if done.work is None else done.work.reputation_nano,
        "hashes": done.hashes,
        "seconds": round(passed_s, 3),
        "keyblocks_found": done.found,
        "keyblocks_pinned": done.pinned,
    }
    found = counted(done.found, "keyblock")
    text = f"{done.hashes} hashes in {_duration(passed_s)}, {found} found, {done.pinned} of them pinned"
    emit(answer, lambda: typer.echo(text))


@app.command()
def bench(
    seconds: Annotated[float, typer.Option(help="Computing time to measure for.", min=0.05, max=600.0)] = 2.0,
    duty: _DutyOption = 25,
    node: NodeOption = None,
    json_output: JsonOption = False,
) -> None:
    """Measure how many hashes this machine tries per second, and what that means for the network, if a node answers.

    Chances follow from rates alone: with a tenth of all hashes one finds a tenth of all keyblocks, on average.

    Example: spchain miner bench --duty 50
    """
    del json_output
    from node.http_client import NodeUnreachable
    from node.identity import Identity
    from node.miner import measure_rate

    rate = measure_rate(seconds)
    answer: dict[str, Any] = {"hashes_per_s": round(rate), "duty_percent": duty}
    shown: dict[str, object] = {
        "this machine": f"{_number(rate)} hashes per second with one core",
        f"at {duty} %": f"{_number(rate * duty / 100)} hashes per second",
    }
    try:
        with connect(node) as client:
            # Of nobody: the target is the same for all.
            work = client.mining_work(Identity.generate().public.public_key)
            outlook = _outlook(client, work, rate * duty / 100)
    except NodeUnreachable as error:
        note(f"{error}; without a node there is no target to compare with")
    else:
        answer |= outlook
        shown |= _shown(outlook)
    emit(answer, lambda: facts(shown))


@app.command()
def status(
    miner: Annotated[
        str | None, typer.Option(help="Public key of the miner, 66 hexadecimal digits.", metavar="KEY")
    ] = None,
    key: Annotated[str | None, typer.Option(help="Key file of the miner, in place of --miner.", metavar="FILE")] = None,
    rate: Annotated[
        float | None,
        typer.Option(
            help="Hashes per second to reckon with; else this machine's, measured, at --duty.", min=1.0, max=1e18
        ),
    ] = None,
    duty: _DutyOption = 25,
    node: NodeOption = None,
    json_output: JsonOption = False,
) -> None:
    """Show what a miner is to work on: epoch, target, how long a keyblock takes, and the miner's reputation.

    Example: spchain miner status --key hospital.json --rate 100000
    """
    del json_output
    from node.miner import measure_rate

    if (miner is None) == (key is None):
        raise InvalidInput("name the miner by --miner or by its --key file; there must be exactly one")
    public_key = _miner_key(miner, key)
    with connect(node) as client:
        work = client.mining_work(public_key)
        _warn_of_punishment(work)
        used = measure_rate(_MEASURE_S) * duty / 100 if rate is None else rate
        outlook = _outlook(client, work, used)
    answer = {"miner": public_key.hex(), **work.model_dump(mode="json"), **outlook}

    def human() -> None:
        facts(
            {
                "miner": public_key.hex(),
                "reputation": _reputation(work.reputation_nano),
                "epoch": work.epoch,
                "keyblock": work.previous.hex(),
                "microblock": work.microblock.hex(),
                "target": work.target.hex(),
                **_shown(outlook),
                "to be revealed": "the seed of this epoch" if work.reveal else "nothing",
            }
        )

    emit(answer, human)


# ------------------------------------------------------------------ running


def _ask_before(client: "NodeClient", public_key: bytes) -> None:
    """Find out what would make the search idle: a token that we lack, since a keyblock that was found without it would be lost.

    The first keyblock may take hours. That a key earns no reputation is only told.
    """
    from ledger.crypto.unique_signature import SIGNATURE_BYTES
    from node.http_client import ApiError, NodeUnreachable

    try:
        client.reveal_seed(_NO_EPOCH, bytes(SIGNATURE_BYTES))
    except NodeUnreachable:
        return  # the miner asks again until it answers
    except ApiError as error:
        # Any other refusal says that we may hand in.
        if error.status == HTTPStatus.UNAUTHORIZED:
            raise
    try:
        _warn_of_punishment(client.mining_work(public_key))
    except (ApiError, NodeUnreachable):
        return  # the miner tells


def _warn_of_punishment(work: "MiningWork") -> None:
    # Whoever is honest has some reputation (`ledger.rules.check_parameters`).
    if not work.reputation_nano:
        warn("this key is punished for misbehaviour: it earns credits, but never reputation; mine with a new key")


@contextmanager
def _signals_held() -> Iterator[None]:
    """Let the signals that end a miner wait until it asks for them, so that none interrupts anything."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _END_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _has_signal(timeout_s: float) -> bool:
    """Wait up to so many seconds for a signal to end."""
    return signal.sigtimedwait(_END_SIGNALS, timeout_s) is not None


class _Screen:
    """Notes, one below the other, and on a terminal a line of progress beneath them."""

    def __init__(self) -> None:
        self._looks: deque[tuple[float, int]] = deque(maxlen=_RATE_LOOKS)

    def rate(self, hashes: int) -> float:
        """Return hashes per second over the last looks."""
        now_s = time.monotonic()
        self._looks.append((now_s, hashes))
        first_s, first = self._looks[0]
        return (hashes - first) / (now_s - first_s) if now_s > first_s else 0.0

    def tell(self, text: str) -> None:
        """Print a note."""
        note(text)

    def show(self, line: str) -> None:
        """Renew the line of progress."""


class _LiveScreen(_Screen):
    def __init__(self, live: "Live") -> None:
        super().__init__()
        self._live = live

    def tell(self, text: str) -> None:
        from rich.text import Text

        self._live.console.print(Text(text, style="bright_black"))

    def show(self, line: str) -> None:
        from rich.text import Text

        self._live.update(Text(line, no_wrap=True, overflow="ellipsis"))


@contextmanager
def _screen(*, quiet: bool) -> Iterator[_Screen]:
    if quiet or not sys.stderr.isatty():
        yield _Screen()
        return
    from rich.console import Console
    from rich.live import Live

    with Live(console=Console(stderr=True), transient=True) as live:
        yield _LiveScreen(live)


def _line(progress: "Progress", rate: float, duty: int) -> str:
    work = progress.work
    if work is None:
        return "waiting for the node"
    parts = [
        f"epoch {work.epoch}",
        f"{_number(rate)} hashes/s at {duty} %",
        f"{progress.found} found, {progress.pinned} pinned",
        # Four digits: the line is to fit into 80 columns.
        f"reputation {_reputation(work.reputation_nano)[:6]}",
    ]
    return " · ".join(parts if progress.is_connected else [*parts, "the node does not answer"])


# ------------------------------------------------------------------ figures


def _miner_key(miner: str | None, key: str | None) -> bytes:
    from node.keystore import read_public

    if key is not None:
        return read_public(Path(key).expanduser()).public_key
    if miner is None or not re.fullmatch(r"[0-9a-fA-F]{66}", miner):
        raise InvalidInput(f"miner {miner!r} is no public key of 66 hexadecimal digits; spchain key show prints it")
    return bytes.fromhex(miner)


def _outlook(client: "NodeClient", work: "MiningWork", rate: float) -> dict[str, Any]:
    """Return what a rate means for the running target."""
    from consensus.work import work_of

    hashes = work_of(int.from_bytes(work.target, "big"))
    interval_ms: int = client.genesis().genesis["parameters"]["work"]["interval_ms"]
    return {
        "epoch": work.epoch,
        "target": work.target.hex(),
        "expected_hashes": hashes,
        "rate_hashes_per_s": round(rate, 3),
        "expected_s": round(hashes / rate, 3),
        "interval_ms": interval_ms,
    }


def _shown(outlook: dict[str, Any]) -> dict[str, object]:
    wanted_s = outlook["interval_ms"] / 1000
    return {
        "a keyblock takes": f"{_number(outlook['expected_hashes'])} hashes on average",
        f"at {_number(outlook['rate_hashes_per_s'])} hashes/s": f"one in {_duration(outlook['expected_s'])} on average",
        "the network wants": f"one in {_duration(wanted_s)}; the target fits when all miners together try "
        f"{_number(outlook['expected_hashes'] / wanted_s)} hashes/s",
    }


def _number(value: float) -> str:
    return f"{round(value):,}".replace(",", " ")


def _reputation(nano: int) -> str:
    return f"{nano // 10**9}.{nano % 10**9:09d}"


def _duration(seconds: float) -> str:
    """Return a time span for people, in two units at most."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    units = (("s", 1), ("min", 60), ("h", 3600), ("d", 86400))
    index = max(index for index, (_, size_s) in enumerate(units) if size_s <= seconds)
    (part, part_s), (unit, unit_s) = units[index - 1 : index + 1]
    whole, rest = divmod(round(seconds / part_s), unit_s // part_s)
    return f"{whole} {unit} {rest} {part}" if rest else f"{whole} {unit}"
