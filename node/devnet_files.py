# SPDX-License-Identifier: GPL-3.0-or-later
"""What a devnet is on the disk: keys (light cost, one passphrase beside them), the genesis, a data directory per node.

`devnet.json` is written last: a directory without it is half made and is made again. Not for secrets: whoever reads the
directory has all keys.
"""

import itertools
import secrets
import shutil
import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from ledger.errors import InvalidInput
from ledger.genesis import chain_id
from ledger.rules import Parameters
from node.config import CONFIG_NAME, render_config
from node.files import create_file, read_file, replace_file
from node.genesis_file import make_genesis, write_genesis
from node.identity import Identity
from node.keystore import Cost, passphrase_from_file, write_key

_MANIFEST = "devnet.json"
_MARKER = ".spchain-devnet"
_FORMAT = 1
_FIRST_PORT = 10_000
"""Below it lie ports of well-known services."""
_SYSTEM_PORTS = Path("/proc/sys/net/ipv4/ip_local_port_range")
_MAX_MANIFEST_BYTES = 256 * 1024


class NodeEntry(msgspec.Struct, frozen=True):
    """What `devnet.json` says of a node; paths are absolute."""

    name: str
    """Name, also of the node's directory: node-1, node-2, …"""
    url: str
    """Base of its HTTP API."""
    p2p_address: str
    """Multiaddress for other nodes."""
    address: str
    """Account of the node, an accredited and funded one."""
    public_key: str
    """Key of the account."""
    data_dir: str
    """Data directory."""
    key_file: str
    """Key file of node and account."""
    log_file: str
    """What the node writes."""


class Manifest(msgspec.Struct, frozen=True):
    """`devnet.json`."""

    format: int
    """Format of this file."""
    network: str
    """Name of the network."""
    chain_id: str
    """Identifier of the chain."""
    genesis_file: str
    """The genesis."""
    passphrase_file: str
    """Opens all key files of the devnet."""
    nodes: tuple[NodeEntry, ...]
    """The nodes; the first is the bootstrap node of the others."""


def exists(directory: Path) -> bool:
    """Tell whether a complete devnet lies in a directory."""
    return (directory.expanduser() / _MANIFEST).is_file()


def load(directory: Path) -> Manifest:
    """Read `devnet.json`. Raises `InvalidInput`: there is none, or it is damaged."""
    path = directory / _MANIFEST
    if not path.exists():
        raise InvalidInput(f"there is no devnet in {directory}; make one: spchain devnet up --dir {directory}")
    try:
        manifest = msgspec.json.decode(read_file(path, _MAX_MANIFEST_BYTES, "devnet file"), type=Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidInput(f"{path} is damaged ({error}); make it anew: {_anew(directory)}") from error
    if manifest.format != _FORMAT or not manifest.nodes:
        raise InvalidInput(f"{path} is of another release; make it anew: {_anew(directory)}")
    return manifest


def _anew(directory: Path) -> str:
    return f"spchain devnet up --wipe --dir {directory}"


def is_claimed(directory: Path) -> bool:
    """Tell whether a directory is a devnet's, whole or not: then it may be deleted."""
    return (directory / _MARKER).exists()


def passphrase_beside(key_file: Path) -> Path | None:
    """Return the passphrase file of the devnet that a key file belongs to, or None."""
    for parent in key_file.expanduser().resolve().parents[:2]:
        if (parent / _MARKER).exists() and (parent / "passphrase").is_file():
            return parent / "passphrase"
    return None


def claim(directory: Path) -> None:
    """Make the directory ours; one that holds something else stays as it is. Raises `InvalidInput`."""
    if is_claimed(directory):
        if exists(directory):
            raise InvalidInput(
                f"there is a devnet in {directory} already; use it, or remove it: spchain devnet down --wipe"
            )
        # A start that was interrupted: no node has run here, nothing is lost.
        wipe(directory)
    elif directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise InvalidInput(f"{directory} is neither a devnet nor an empty directory; choose another one")
    create_file(directory / _MARKER, b"spchain devnet: may be deleted by `spchain devnet down --wipe`\n")


def make(
    directory: Path,
    count: int,
    api_base_port: int | None,
    network: str,
    parameters: Parameters,
    settings: Mapping[str, object],
) -> Manifest:
    """Write keys, genesis and configurations of a new network into a claimed directory, and last the manifest. Raises `InvalidInput`."""
    passphrase_file, genesis_file = directory / "passphrase", directory / "genesis.msgpack"
    create_file(passphrase_file, secrets.token_hex(16).encode() + b"\n", mode=0o600)
    passphrase = passphrase_from_file(passphrase_file)
    names = [f"node-{number}" for number in range(1, count + 1)]
    identities = [Identity.generate(name) for name in names]
    members = [identity.public.public_key for identity in identities]
    genesis = make_genesis(network, members, time.time_ns() // 10**6, parameters=parameters)
    write_genesis(genesis_file, genesis)
    ports = free_ports(2 * count)
    p2p_ports, api_ports = ports[:count], ports[count:]
    if api_base_port is not None:
        api_ports = list(range(api_base_port, api_base_port + count))
    first = f"/ip4/127.0.0.1/tcp/{p2p_ports[0]}/p2p/{identities[0].peer_id}"
    entries = []
    for name, identity, p2p_port, api_port in zip(names, identities, p2p_ports, api_ports, strict=True):
        data_dir = directory / name
        write_key(data_dir / "key.json", identity, passphrase, Cost.LIGHT)
        values = {
            "name": name,
            "genesis_file": str(genesis_file),
            "passphrase_file": str(passphrase_file),
            "p2p_listen": f"127.0.0.1:{p2p_port}",
            "p2p_bootstrap": [] if identity is identities[0] else [first],
            "api_listen": f"127.0.0.1:{api_port}",
            **settings,
        }
        create_file(data_dir / CONFIG_NAME, render_config(values).encode())
        entries.append(
            NodeEntry(
                name=name,
                url=f"http://127.0.0.1:{api_port}",
                p2p_address=f"/ip4/127.0.0.1/tcp/{p2p_port}/p2p/{identity.peer_id}",
                address=identity.address.hex(),
                public_key=identity.public.public_key.hex(),
                data_dir=str(data_dir),
                key_file=str(data_dir / "key.json"),
                log_file=str(data_dir / "node.log"),
            )
        )
    manifest = Manifest(
        _FORMAT, network, chain_id(genesis).hex(), str(genesis_file), str(passphrase_file), tuple(entries)
    )
    replace_file(directory / _MANIFEST, msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n")
    return manifest


def wipe(directory: Path) -> None:
    """Delete a devnet's directory, which must be one; raises `InvalidInput`."""
    directory = directory.expanduser().resolve()
    if not directory.exists():
        return
    if not is_claimed(directory):
        raise InvalidInput(f"{directory} is no devnet (it has no {_MARKER}) and is not deleted; delete it yourself")
    shutil.rmtree(directory)


def free_ports(count: int) -> Sequence[int]:
    """Return TCP ports that are free at this moment, all different. Raises `InvalidInput` when there are not so many.

    Not those that the system would choose: from among them it may give one to any connection until the node that is to have it
    has started, or while that node is down.
    """
    given_away = system_ports()
    candidates = [port for port in range(_FIRST_PORT, 2**16) if port not in given_away]
    # Where the system chooses from all, one of them has to do.
    candidates = candidates or list(given_away)
    # Two devnets that are made at the same time take different ones.
    secrets.SystemRandom().shuffle(candidates)
    found = list(itertools.islice(filter(_is_free, candidates), count))
    if len(found) < count:
        raise InvalidInput(f"only {len(found)} of {count} TCP ports are free on this machine; stop what uses them")
    return found


def system_ports() -> range:
    """Return the ports that the system gives to connections that name none."""
    try:
        first, last = map(int, _SYSTEM_PORTS.read_text().split())
    except (OSError, ValueError):
        return range(32768, 61000)  # Linux's own default
    return range(first, last + 1)


def _is_free(port: int) -> bool:
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True
