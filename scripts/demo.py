# SPDX-License-Identifier: GPL-3.0-or-later
"""The demo: hospitals keep the records of ten patients on a network of real nodes that mine. Run `scripts/demo`."""

import argparse
import gzip
import hashlib
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from ledger.bodies import Transfer
from ledger.errors import SpchainError
from node.actions import Actor, NetworkRules, WrittenRecord, network_rules, read_record, submit_and_wait
from node.api.reputation_models import Epoch
from node.client import NodeClient
from node.devnet import MINE_PERCENT, Devnet
from node.identity import Identity
from node.keystore import Cost, write_key
from records.fhir import BundleSummary, validate_bundle, warm_up
from scripts.demo_epochs import (
    DemoFailure,
    check_epochs,
    facts,
    reputations,
    tell_progress,
    wait_for_epochs,
)
from scripts.demo_sharing import Sharing

DATA = Path(__file__).parent / "data" / "fhir"
NODES = 4
PATIENTS = 10
HOSPITALS = (("Charité Nord", "DE"), ("Hôpital du Lac", "CH"), ("St. Brigid's", "IE"), ("Clínica del Sol", "ES"))
ALLOWANCE_MICROCREDIT = 1_000_000
PAYMENTS = 600
"""Small payments between hospitals, in one go, to show throughput."""
CATCH_UP_S = 60.0
PICTURE_FORMAT = re.sub(r"@font-face \{\{.*?\}\}", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
"""Without fonts from the web: whoever looks at the picture asks no stranger."""


@dataclass
class Story:
    """What has happened so far."""

    records: list[tuple[Identity, WrittenRecord, str, int]] = field(default_factory=list)
    """Patient, record, SHA-256 of the bundle and index of the node it was handed to."""
    facts: list[tuple[str, str]] = field(default_factory=list)
    """Lines of the summary."""
    epochs: list[Epoch] = field(default_factory=list)
    """All epochs, as all nodes tell them."""
    leaders: list[bytes] = field(default_factory=list)
    """Who proposed each microblock, as all nodes tell it."""

    def tell(self, what: str, value: str) -> None:
        """Add a line to the summary."""
        self.facts.append((what, value))


def main() -> int:
    """Run from the command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keep", action="store_true", help="leave the network up and print how to use it")
    parser.add_argument("--dir", type=Path, help="directory of the network (default: a temporary one)")
    parser.add_argument("--picture", type=Path, help="also write what was printed as an SVG picture")
    arguments = parser.parse_args()
    picture: Path | None = arguments.picture
    # Plain runs of text keep their place in every viewer, whatever its font.
    console = Console(width=96, record=True, highlight=False) if picture else Console()
    directory = arguments.dir or Path(tempfile.mkdtemp(prefix="spchain-demo-"))
    devnet: Devnet | None = None
    kept = False
    try:
        devnet = Devnet.create(directory / "network", NODES, network="demo")
        play(devnet, console, directory / "patients")
        if arguments.keep:
            kept = True
            say_how_to_use(devnet, console, directory)
    except SpchainError as error:
        console.print(f"\n[bold red]The demo failed:[/] {error}", highlight=False)
        for entry in devnet.manifest.nodes if devnet is not None else ():
            console.print(f"log of {entry.name}: {entry.log_file}", highlight=False)
        kept = True  # the logs are what is needed now
        if devnet is not None:
            devnet.stop()
        return 1
    finally:
        if devnet is not None and not kept:
            devnet.wipe()
            shutil.rmtree(directory / "patients", ignore_errors=True)
            if arguments.dir is None:
                directory.rmdir()
    if picture:
        console.save_svg(str(picture), title="scripts/demo", code_format=PICTURE_FORMAT)
    return 0


def play(devnet: Devnet, console: Console, patients_dir: Path) -> None:
    """Tell the whole story; raises `SpchainError` where something does not hold."""
    began_s = time.monotonic()
    story = Story()
    console.print("[bold]SPChain demo[/]: four nodes that mine, four hospitals, ten synthetic patients\n")
    with console.status(f"starting {NODES} nodes …"):
        devnet.start(told=lambda line: console.print(f"  [dim]{line}[/]", highlight=False))
    console.print(f"[green]✓[/] {NODES} nodes are up and see each other ({time.monotonic() - began_s:.1f} s)")
    devnet.start_miners()
    console.print(f"[green]✓[/] each has a miner that may use {MINE_PERCENT} % of a core")
    with devnet.clients() as clients:
        rules = network_rules(clients[0])
        hospitals = register_hospitals(devnet, clients, rules, console)
        bundles = load_bundles(console)
        patients = register_patients(hospitals, clients, rules, console, patients_dir)
        half = len(patients) // 2
        write_records(story, list(zip(patients, bundles, strict=True))[:half], hospitals, clients, rules, console)
        tell_progress(devnet, clients[0], console)
        titles = [title for title, _ in HOSPITALS]
        sharing = Sharing(devnet, clients, rules, console, titles, patients[0], bundles[0][0])
        sharing.grant()
        victim = sharing.victim()
        height = clients[(victim + 1) % NODES].status().height
        devnet.kill(victim)
        console.print(f"[red]✗[/] kill -9 {name(devnet, victim)}, the leader, and its miner at height {height}")
        alive = [index for index in range(NODES) if index != victim]
        killed_s = time.monotonic()
        sharing.read_and_revoke(victim)
        write_records(
            story, list(zip(patients, bundles, strict=True))[half:], hospitals, clients, rules, console, alive
        )
        tell_progress(devnet, clients[alive[0]], console)
        pay(story, hospitals[0], [devnet.identity(index) for index in alive], clients, rules, console, alive)
        story.tell("while it was away", f"{clients[alive[0]].status().height - height} microblocks by the other three")
        catch_up(story, devnet, clients, victim, alive[0], killed_s, console)
        devnet.start_miners()
        sharing.confirm(victim)
        read_back(story, devnet, clients, console)
        sharing.label()
        sharing.look_back(patients_dir)
        with console.status("mining …"):
            wait_for_epochs(devnet, clients[0])
        devnet.stop_miners()
        agree(story, devnet, clients, console)
        story.facts += sharing.facts
        story.tell("duration", f"{time.monotonic() - began_s:.0f} s")
        summarise(story, clients[0], console)
        console.print()
        console.print(reputations(devnet, clients[0], story.epochs, story.leaders, console.width))


def register_hospitals(
    devnet: Devnet, clients: list[NodeClient], rules: NetworkRules, console: Console
) -> list[tuple[Identity, int]]:
    """Register one hospital per node; returns the hospital's keys and the index of its node."""
    hospitals = []
    for index, (title, country) in enumerate(HOSPITALS):
        identity = devnet.identity(index)
        Actor(clients[index], identity, rules=rules).register_institution(title, country)
        hospitals.append((identity, index))
    console.print(
        f"[green]✓[/] {len(hospitals)} hospitals are registered: {', '.join(title for title, _ in HOSPITALS)}"
    )
    return hospitals


def load_bundles(console: Console) -> list[tuple[bytes, BundleSummary]]:
    """Read the bundles of ten patients and validate them against FHIR R4."""
    files = sorted(DATA.glob("p*.json.gz"))[:PATIENTS]
    bundles = []
    warm_up()
    with progress(console, "validating FHIR bundles", len(files)) as step:
        for file in files:
            raw = gzip.decompress(file.read_bytes())
            bundles.append((raw, validate_bundle(raw)))
            step()
    total = sum(len(raw) for raw, _ in bundles)
    entries = sum(summary.entry_count for _, summary in bundles)
    console.print(f"[green]✓[/] {len(bundles)} FHIR R4 bundles are valid: {entries} entries, {total / 1e6:.1f} MB")
    return bundles


def register_patients(
    hospitals: list[tuple[Identity, int]],
    clients: list[NodeClient],
    rules: NetworkRules,
    console: Console,
    directory: Path,
) -> list[Identity]:
    """Register ten patients with their consent, spread over the hospitals; their key files stay with the demo."""
    patients = []
    passphrase = b"demo"
    directory.mkdir(parents=True, exist_ok=True)
    with progress(console, "registering patients", PATIENTS) as step:
        for number in range(PATIENTS):
            patient = Identity.generate(f"patient-{number + 1}")
            write_key(directory / f"patient-{number + 1}.json", patient, passphrase, Cost.LIGHT)
            hospital, node = hospitals[number % len(hospitals)]
            Actor(clients[node], hospital, rules=rules).register_patient(patient, ALLOWANCE_MICROCREDIT)
            patients.append(patient)
            step()
    console.print(f"[green]✓[/] {len(patients)} patients are registered, each with own keys")
    return patients


def write_records(
    story: Story,
    work: list[tuple[Identity, tuple[bytes, BundleSummary]]],
    hospitals: list[tuple[Identity, int]],
    clients: list[NodeClient],
    rules: NetworkRules,
    console: Console,
    alive: list[int] | None = None,
) -> None:
    """Seal each bundle to its patient and commit it; a hospital whose node is down goes to the next one."""
    began_s = time.monotonic()
    with progress(console, "sealing and committing records", len(work)) as step:
        for patient, (raw, _) in work:
            home = clients[0].patient(patient.address) if alive is None else clients[alive[0]].patient(patient.address)
            hospital, node = next((h, n) for h, n in hospitals if h.address == home.institution)
            reached = node if alive is None or node in alive else alive[0]
            written = Actor(clients[reached], hospital, rules=rules).put_record(patient.address, raw)
            story.records.append((patient, written, hashlib.sha256(raw).hexdigest(), reached))
            step()
    when = "" if alive is None else " with one node down"
    console.print(f"[green]✓[/] {len(work)} records are committed{when} ({time.monotonic() - began_s:.1f} s)")


def pay(
    story: Story,
    hospital: tuple[Identity, int],
    others: list[Identity],
    clients: list[NodeClient],
    rules: NetworkRules,
    console: Console,
    alive: list[int],
) -> None:
    """Move many small amounts in one go."""
    identity, node = hospital
    client = clients[node if node in alive else alive[0]]
    actor = Actor(client, identity, rules=rules)
    raws = actor.sign([Transfer(others[number % len(others)].address, 1 + number) for number in range(PAYMENTS)])
    began_s = time.monotonic()
    with console.status(f"committing {PAYMENTS} payments …"):
        submit_and_wait(client, raws)
    took_s = time.monotonic() - began_s
    rate = PAYMENTS / took_s
    console.print(
        f"[green]✓[/] {PAYMENTS} payments are committed in {took_s:.2f} s ({rate:.0f} per second) by three nodes"
    )
    story.tell("throughput", f"{rate:.0f} signed payments per second, one sender, one node down")


def catch_up(
    story: Story, devnet: Devnet, clients: list[NodeClient], victim: int, other: int, killed_s: float, console: Console
) -> None:
    """Start the killed node again and wait until it has what the others have."""
    with console.status(f"starting {name(devnet, victim)} again …"):
        target = clients[other].status()
        devnet.restart(victim)
        began_s = time.monotonic()
        while (reached := clients[victim].status()).height < target.height:
            if time.monotonic() - began_s > CATCH_UP_S:
                raise DemoFailure(f"{name(devnet, victim)} is at {reached.height}, the others at {target.height}")
            time.sleep(0.05)
        devnet.wait_connected()
    took_s = time.monotonic() - began_s
    away_s = began_s - killed_s
    text = f"{name(devnet, victim)} is back after {away_s:.1f} s and has caught up to height {target.height} in {took_s:.1f} s"
    console.print(f"[green]✓[/] {text}")
    story.tell("killed and back", text)


def read_back(story: Story, devnet: Devnet, clients: list[NodeClient], console: Console) -> None:
    """Read each record through another node than it was written through, and decrypt it with the patient's key."""
    began_s = time.monotonic()
    with progress(console, "reading back through other nodes", len(story.records)) as step:
        for patient, written, digest, node in story.records:
            other = (node + 1) % NODES
            _, raw = read_record(clients[other], patient, written.sequence)
            if hashlib.sha256(raw).hexdigest() != digest:
                raise DemoFailure(f"record {written.record_id.hex()} came back changed from {name(devnet, other)}")
            step()
    count = len(story.records)
    console.print(
        f"[green]✓[/] {count} records came back byte for byte through other nodes ({time.monotonic() - began_s:.1f} s)"
    )
    story.tell("read back", f"{count} of {count} bundles, byte for byte, through another node")


def agree(story: Story, devnet: Devnet, clients: list[NodeClient], console: Console) -> None:
    """Compare every block hash and state digest, the state root, and all epochs, on all nodes."""
    with console.status("comparing all nodes …"):
        deadline_s = time.monotonic() + CATCH_UP_S
        while True:
            states = [client.state() for client in clients]
            if len({state.height for state in states}) == 1:
                break
            if time.monotonic() > deadline_s:
                raise DemoFailure(f"nodes do not settle: heights {[state.height for state in states]}")
            time.sleep(0.2)
        if len({(state.state_root, state.state_digest) for state in states}) != 1:
            raise DemoFailure("nodes have different states at one height")
        for height in range(states[0].height + 1):
            blocks = [client.block(height) for client in clients]
            digests = {client.state(height).state_digest for client in clients}
            if len({block.block_hash for block in blocks}) != 1 or len(digests) != 1:
                raise DemoFailure(f"nodes have different microblocks at height {height}")
            if height:
                story.leaders.append(blocks[0].leader)
        story.epochs = check_epochs(clients)
    height, root = states[0].height, (states[0].state_root or b"").hex()
    console.print(
        f"[green]✓[/] {NODES} nodes agree on all {height} microblocks, all {story.epochs[-1].number} keyblocks and the state root"
    )
    names = ", ".join(entry.name for entry in devnet.manifest.nodes)
    story.tell("who agrees", names)
    story.tell("on", f"microblocks 0 to {height}, state root {root[:16]}…")
    story.facts[1:1] = facts(devnet, story.epochs, story.leaders)


def summarise(story: Story, client: NodeClient, console: Console) -> None:
    """Print what was done and what it came to."""
    status = client.status()
    sizes = (
        sum(written.bundle_bytes for _, written, _, _ in story.records),
        sum(w.blob_bytes for _, w, _, _ in story.records),
    )
    sealed = f"{sizes[0] / 1e6:.1f} MB of FHIR sealed in {sizes[1] / 1e6:.2f} MB"
    story.facts.insert(
        0, ("committed", f"{status.transactions} transactions, {status.records} of them records; {sealed}")
    )
    table = Table(title="What happened", show_header=False, title_justify="left")
    for what, value in story.facts:
        table.add_row(what, value)
    console.print()
    console.print(table)


def name(devnet: Devnet, index: int) -> str:
    """Return a node's name."""
    return devnet.manifest.nodes[index].name


@contextmanager
def progress(console: Console, label: str, total: int) -> Iterator[Callable[[], None]]:
    """Show a bar that goes away when it is full; gives a function that advances it."""
    columns = (TextColumn("  {task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(label, total=total)
        yield lambda: bar.advance(task)


def say_how_to_use(devnet: Devnet, console: Console, directory: Path) -> None:
    """Print commands for the network that was left up."""
    patient = directory / "patients" / "patient-1.json"
    console.print("\nThe network stays up. Try:", highlight=False)
    for line in (
        f"export SPCHAIN_NODE={devnet.urls[0]} PATH=$PWD/.venv/bin:$PATH",
        "spchain status",
        "spchain epoch",
        "spchain reputation",
        "spchain institution list",
        f"export SPCHAIN_PASSPHRASE=demo && spchain record list --patient {patient}",
        f"spchain record get --patient {patient} 0 --output record.json",
        f"spchain label history --patient {patient} 0",
        f"spchain grant list {patient} && spchain audit --key {patient}",
        f"spchain devnet up --mine --dir {devnet.directory}",
        f"spchain devnet status --dir {devnet.directory}",
        f"spchain devnet down --dir {devnet.directory} --wipe",
    ):
        console.print(f"  {line}", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
