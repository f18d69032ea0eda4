# SPDX-License-Identifier: GPL-3.0-or-later
"""`spchain init` and `spchain genesis`: how a network and its nodes begin."""

import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ledger.errors import InvalidInput
from node.cli.access import address_in, passphrase, public_key_in
from node.cli.explained import amount
from node.cli.shell import JsonOption, PassphraseOption, emit, facts, moment, note, warn

if TYPE_CHECKING:
    from ledger.genesis import Genesis
    from ledger.rules import Parameters
    from node.identity import PublicIdentity

app = typer.Typer(help="Make and show the genesis of a network.", no_args_is_help=True)

_MemberOption = Annotated[
    list[str] | None,
    typer.Option("--member", help="Founding member: public key or key file; may be repeated.", metavar="KEY"),
]
_ProfileOption = Annotated[
    str,
    typer.Option(
        help="How fast reputation grows and keyblocks come: main (ten minutes, years), testnet (a minute, weeks), "
        "devnet (a quarter of a minute, an hour)."
    ),
]
_VerifyingKeyOption = Annotated[
    str | None,
    typer.Option(
        help="What the network's ceremony made (verifying-key.bin). Only the profile devnet does without: everybody can "
        "forge proofs for the development key.",
        metavar="FILE",
    ),
]


def add_to(root: typer.Typer) -> None:
    """Add the verb that belongs to no group."""
    root.command("init")(init)


def init(
    data_dir: Annotated[
        str | None, typer.Option(help="Directory to prepare. Else SPCHAIN_DATA_DIR, else the user's.", metavar="DIR")
    ] = None,
    genesis: Annotated[str | None, typer.Option(help="Genesis of the network to join.", metavar="FILE")] = None,
    network: Annotated[str | None, typer.Option(help="Name of a network to found, in place of --genesis.")] = None,
    members: _MemberOption = None,
    profile: _ProfileOption = "main",
    verifying_key: _VerifyingKeyOption = None,
    key: Annotated[str | None, typer.Option(help="Key file to use; else a new one is made.", metavar="FILE")] = None,
    name: Annotated[str, typer.Option(help="The node's name as shown to people.")] = "",
    bootstrap: Annotated[
        list[str] | None, typer.Option(help="Multiaddress of a node to join by; may be repeated.", metavar="ADDRESS")
    ] = None,
    announce: Annotated[
        list[str] | None, typer.Option(help="Multiaddress that others shall dial; may be repeated.", metavar="ADDRESS")
    ] = None,
    p2p_listen: Annotated[str | None, typer.Option(help="Address and port for other nodes.", metavar="IP:PORT")] = None,
    api_listen: Annotated[str | None, typer.Option(help="Address and port of the HTTP API.", metavar="IP:PORT")] = None,
    passphrase_file: PassphraseOption = None,
    json_output: JsonOption = False,
) -> None:
    """Prepare a data directory: config.toml, genesis.msgpack (and a readable genesis.json), key.json.

    Join a network:  spchain init --data-dir d --genesis genesis.msgpack --key hospital.json --bootstrap /ip4/…/p2p/…

    Found one:  spchain init --data-dir d --network ward --member other.json --member 02ab… --verifying-key verifying-key.bin
    """
    del json_output
    import os

    from ledger.genesis import chain_id
    from node.config import CONFIG_NAME, default_data_dir, load_config, render_config
    from node.files import create_file
    from node.genesis_file import make_genesis, read_genesis, write_genesis

    if (genesis is None) == (network is None):
        raise InvalidInput("name either the network's --genesis file or a new --network; there must be exactly one")
    if genesis is not None and members:
        raise InvalidInput("--member belongs to a new --network; the members of a network stand in its genesis")
    if genesis is not None and verifying_key is not None:
        raise InvalidInput("--verifying-key belongs to a new --network; that of a network stands in its genesis")
    directory = Path(data_dir or os.environ.get("SPCHAIN_DATA_DIR") or default_data_dir()).expanduser().resolve()
    for taken in (CONFIG_NAME, "genesis.msgpack", "key.json"):
        if (directory / taken).exists():
            raise InvalidInput(f"{directory / taken} exists; the directory is prepared already: choose another")
    read = None if genesis is None else read_genesis(Path(genesis).expanduser())
    values = {
        "name": name or None,
        "p2p_bootstrap": bootstrap,
        "p2p_announce": announce,
        "p2p_listen": p2p_listen,
        "api_listen": api_listen,
        "passphrase_file": None if passphrase_file is None else str(Path(passphrase_file).expanduser().resolve()),
    }
    # Checked before anything is written.
    load_config(directory, {}, values)
    rules = _rules(profile)
    proofs_key = b"" if read is not None else _proofs_key(verifying_key, rules)
    others = [public_key_in(member) for member in members or ()]
    public, place_key = _key(directory / "key.json", key, name, passphrase_file)
    if read is None:
        keys = list(dict.fromkeys([public.public_key, *others]))
        read = make_genesis(network or "", keys, time.time_ns() // 10**6, parameters=rules, verifying_key=proofs_key)
    place_key()
    write_genesis(directory / "genesis.msgpack", read)
    create_file(directory / CONFIG_NAME, render_config(values).encode())
    note(f"prepared {directory}; start the node: spchain node run --data-dir {directory}")
    shown = {
        "data_dir": str(directory),
        "chain_id": chain_id(read).hex(),
        "network": read.network,
        "address": public.address.hex(),
        "public_key": public.public_key.hex(),
        "peer_id": public.peer_id,
        "is_member": any(member.public_key == public.public_key for member in read.committee),
    }
    emit(shown, lambda: facts(shown))


def _key(
    target: Path, key: str | None, name: str, passphrase_file: str | None
) -> "tuple[PublicIdentity, Callable[[], None]]":
    """Return whose key the node will have, one made before or a new one, and what writes it to its place when all else is right."""
    from node.files import create_file, read_file
    from node.identity import Identity
    from node.keystore import MAX_KEY_FILE_BYTES, read_public, write_key

    if key is not None:
        public = read_public(Path(key).expanduser())
        content = read_file(Path(key).expanduser(), MAX_KEY_FILE_BYTES, "key file")
        return public, lambda: create_file(target, content, mode=0o600)
    identity = Identity.generate(name)
    secret = passphrase(passphrase_file, target, "new passphrase", confirm=True)
    return identity.public, lambda: write_key(target, identity, secret)


def _rules(profile: str) -> "Parameters":
    from ledger.rules import PROFILES

    if profile not in PROFILES:
        raise InvalidInput(f"there is no profile {profile!r}; choose one of {', '.join(PROFILES)}")
    return PROFILES[profile]


def _proofs_key(file: str | None, rules: "Parameters") -> bytes:
    """Read the verifying key named, or return the development key where that will do."""
    from ledger.crypto.development_key import DEVELOPMENT_VERIFYING_KEY
    from ledger.genesis import check_verifying_key
    from node.genesis_file import read_verifying_key

    key = DEVELOPMENT_VERIFYING_KEY if file is None else read_verifying_key(Path(file).expanduser())
    check_verifying_key(key, rules)
    return key


@app.command("new")
def new(
    network: Annotated[str, typer.Option(help="Name: lower-case letters, digits, dashes.")],
    members: _MemberOption = None,
    output: Annotated[str, typer.Option("--output", "-o", help="File to write.", metavar="FILE")] = "genesis.msgpack",
    balance: Annotated[
        int, typer.Option(help="Opening balance of each member, in microcredits.", min=0, max=2**62)
    ] = 10**12,
    accredit: Annotated[
        list[str] | None,
        typer.Option(help="Further account that may register as an institution; may be repeated.", metavar="ADDRESS"),
    ] = None,
    allocate: Annotated[
        list[str] | None, typer.Option(help="Further opening balance; may be repeated.", metavar="ADDRESS=MICROCREDITS")
    ] = None,
    profile: _ProfileOption = "main",
    verifying_key: _VerifyingKeyOption = None,
    external: Annotated[
        float, typer.Option(help="External reputation (Ext) of each member, 0 to 1.", min=0.001, max=1.0)
    ] = 0.25,
    minimum_fee: Annotated[int | None, typer.Option(help="Smallest fee, in microcredits.", min=0, max=2**62)] = None,
    term: Annotated[int | None, typer.Option(help="Most microblocks of one leader's term.", min=2, max=2**20)] = None,
    committee: Annotated[int | None, typer.Option(help="Most members of a committee.", min=1, max=64)] = None,
    json_output: JsonOption = False,
) -> None:
    """Make a genesis for nodes on many machines; all of them get the same file.

    Each hospital makes a key (spchain key new) and sends its public key to whoever runs this.

    Example: spchain genesis new --network ward --member a.json --member 02ab… --verifying-key verifying-key.bin
    """
    del json_output
    import msgspec

    from ledger.rules import is_for_development
    from node.genesis_file import make_genesis, newcomers_that_stop, write_genesis

    if not members:
        raise InvalidInput("a network has no members; name each founding node with --member")
    chosen = {"minimum_fee_microcredit": minimum_fee, "term_microblocks": term, "committee_size": committee}
    rules = msgspec.structs.replace(
        _rules(profile), **{name: value for name, value in chosen.items() if value is not None}
    )
    genesis = make_genesis(
        network,
        [public_key_in(member) for member in members],
        time.time_ns() // 10**6,
        parameters=rules,
        verifying_key=_proofs_key(verifying_key, rules),
        # Read as a decimal fraction of thousandths: what nodes agree on is the integer in the file.
        external_nano=round(external * 1000) * 10**6,
        balance_microcredit=balance,
        accredited=[address_in(text, "account") for text in accredit or ()],
        allocations=dict(_allocation(text) for text in allocate or ()),
    )
    twin = write_genesis(Path(output).expanduser(), genesis)
    note(f"made {output}, readable as {twin}; give it to every node: spchain init --genesis {output}")
    newcomers = newcomers_that_stop(genesis)
    if newcomers is not None and not is_for_development(rules):
        warn(
            f"as long as few others mine, {newcomers} new keys with one keyblock each, and no nodes behind them, can stop this network: "
            f"have more founding members, or make it anew with --committee {len(members) + newcomers - 1} or less"
        )
    _show(genesis)


@app.command("show")
def show(
    file: Annotated[str, typer.Argument(help="Genesis file.", metavar="FILE")] = "genesis.msgpack",
    json_output: JsonOption = False,
) -> None:
    """Check and show a genesis file.

    Example: spchain genesis show genesis.msgpack
    """
    del json_output
    from node.genesis_file import read_genesis

    _show(read_genesis(Path(file).expanduser()))


def _flat(values: Mapping[str, object], group: str = "") -> dict[str, object]:
    """Return values by names for people; those of a group bear its name before their own."""
    found: dict[str, object] = {}
    for name, value in values.items():
        shown = f"{group} {name.replace('_', ' ')}".strip()
        found |= _flat(value, shown) if isinstance(value, Mapping) else {shown: value}
    return found


def _allocation(text: str) -> tuple[bytes, int]:
    account, _, digits = text.partition("=")
    if not re.fullmatch(r"[0-9]{1,19}", digits):
        raise InvalidInput(f"--allocate {text!r} names no amount; write it as ADDRESS=MICROCREDITS")
    return address_in(account, "account"), int(digits)


def _show(genesis: "Genesis") -> None:
    from hashlib import sha256

    from ledger.crypto.development_key import DEVELOPMENT_VERIFYING_KEY
    from ledger.genesis import chain_id
    from node.readable import readable

    def human() -> None:
        facts(
            {
                "network": genesis.network,
                "chain id": chain_id(genesis).hex(),
                "begun": moment(genesis.timestamp_ms),
                "members": len(genesis.committee),
                "accredited": len(genesis.accredited),
                "verifying key": (
                    "of development: everybody can forge proofs"
                    if genesis.chameleon_verifying_key == DEVELOPMENT_VERIFYING_KEY
                    else sha256(genesis.chameleon_verifying_key).hexdigest()
                ),
                "minted": f"{sum(a.balance_microcredit for a in genesis.allocations)} microcredits",
                **_flat(readable(genesis.parameters)),
            }
        )
        for number, member in enumerate(genesis.committee, 1):
            facts({f"member {number}": f"{member.public_key.hex()}, Ext {amount(member.external_nano)}"})

    emit({"chain_id": chain_id(genesis).hex(), **readable(genesis)}, human)
