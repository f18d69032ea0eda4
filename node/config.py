# SPDX-License-Identifier: GPL-3.0-or-later
"""The node's configuration: one typed object, made in one place.

Later sources win: defaults, `config.toml` in the data directory, environment `SPCHAIN_<FIELD>` (lists separated by commas),
flags of the command line. Relative paths are relative to the data directory. Nothing behind this module sees TOML, environment or flags.
"""

import difflib
import ipaddress
import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, get_origin

from platformdirs import user_data_path
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from ledger.errors import InvalidInput
from node.checkpoint import parse_checkpoint
from node.files import read_file
from node.names import check_name

CONFIG_NAME = "config.toml"
ENVIRONMENT_PREFIX = "SPCHAIN_"
OTHER_VARIABLES = frozenset(ENVIRONMENT_PREFIX + name for name in ("PASSPHRASE", "NODE", "DEVNET", "API_TOKEN_FILE"))
"""What the command line reads beside a node's settings."""
MAX_CONFIG_BYTES = 64 * 1024
"""All fields with their texts take about 5 KiB."""
_MIB = 1024 * 1024
_GIB = 1024 * _MIB


class NodeConfig(BaseModel):
    """Everything that an operator decides about one node; what all nodes must agree on stands in the genesis."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, validate_default=True)

    data_dir: Path
    """Directory with all that the node keeps; one node at a time."""
    name: str = ""
    """Name shown to people, of at most 64 characters; empty: the name in the key file."""
    genesis_file: Path = Path("genesis.msgpack")
    """The network's genesis; all its nodes have the same bytes."""
    key_file: Path = Path("key.json")
    """The node's encrypted key file."""
    passphrase_file: Path | None = None
    """File whose first line opens the key file; without it SPCHAIN_PASSPHRASE is read, else the terminal asked."""
    p2p_listen: str = "0.0.0.0:4001"
    """Address and port for other nodes; "[::]:4001" is IPv6, port 0 lets the system choose."""
    p2p_announce: Annotated[tuple[str, ...], Field(max_length=16)] = ()
    """Multiaddresses to tell others instead of the ones listened on, for nodes behind address translation."""
    p2p_bootstrap: Annotated[tuple[str, ...], Field(max_length=64)] = ()
    """Multiaddresses "/ip4/…/tcp/…/p2p/<peer id>" of nodes to join the network by; one that answers is enough."""
    p2p_mdns: bool = False
    """Whether to announce the node and look for others on the local network by multicast DNS."""
    p2p_max_peers: Annotated[int, Field(ge=1, le=500)] = 50
    """Most peers at once, in both directions together; each costs about 1 MiB and two file descriptors."""
    api_listen: str = "127.0.0.1:8080"
    """Address and port of the HTTP API; beyond loopback it needs `api_token_file`, and TLS in front of it. Without a token only requests
    are answered whose Host is localhost or a loopback address."""
    api_token_file: Path | None = None
    """File whose first line is the token that HTTP requests which write must carry (Authorization: Bearer …)."""
    join_wait_ms: Annotated[int, Field(ge=0, le=600_000)] = 2_000
    """How long a node without a chain waits for further peers before it compares their chains, in milliseconds. One honest peer in
    this time is enough."""
    checkpoint: str = ""
    """Keyblock "<epoch>:<hash>" that the chain must hold, as `spchain status` shows both on a node that you trust; empty: none. A node
    without a chain then follows no other one, whoever offers it."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Least severe log lines that are written."""
    log_format: Literal["console", "json"] = "console"
    """Log lines for people, or one JSON object per line for machines; both on standard error."""
    timeout_ms: Annotated[int, Field(ge=50, le=600_000)] = 1_000
    """Consensus: shortest time without progress after which a leader is given up, in milliseconds; it doubles per failed round."""
    heartbeat_ms: Annotated[int, Field(ge=100, le=3_600_000)] = 10_000
    """Consensus: pause between empty microblocks when there is nothing to order, in milliseconds."""
    mempool_transactions: Annotated[int, Field(ge=100, le=1_000_000)] = 50_000
    """Most transactions waiting for a microblock; each takes about 1 KiB. Further ones are refused as mempool_full."""
    replicas: Annotated[int, Field(ge=1, le=64)] = 3
    """Nodes that keep a copy of each blob, and of the data of each final off-chain batch; as many as may be lost at once, and one more."""
    blob_capacity_bytes: Annotated[int, Field(ge=16 * _MIB)] = 64 * _GIB
    """Most bytes of encrypted blobs kept here; further ones are refused."""
    erase_labelled: bool = False
    """Whether to erase the ciphertext of a record once a label allows it with the patient's permission, and to confirm it on the chain."""
    offchain_data_bytes: Annotated[int, Field(ge=256 * _MIB)] = 16 * _GIB
    """Most bytes of off-chain batches' data kept here; a member that has no room left votes for no further batches, and for none of an
    operator whose data takes more than it leaves free (alone: half of this)."""
    watch: bool = True
    """Whether to execute the batches of all off-chain contracts again, and to challenge those that are wrong."""
    contract_senders: Literal["known", "anyone"] = "known"
    """Whose requests to the contracts that this node operates are taken: those of accounts that the chain or the contract knows, or
    everybody's. Requests that are forced on the chain are executed in any case."""
    access_log_contract: Annotated[str, Field(pattern=r"^([0-9a-f]{64}|off)?$")] = ""
    """Identifier of the off-chain contract that this institution's accesses are logged in; "off": in none. Empty: the only open access log
    that names this institution as a writer and is operated by a registered institution; if there are several, in none."""
    store_limit_bytes: Annotated[int, Field(ge=16 * _MIB)] = 256 * _GIB
    """Size up to which the chain's database may grow, in bytes; the node stops writing, with a reason, when it is reached."""

    @field_validator("name")
    @classmethod
    def _printable(cls, value: str) -> str:
        try:
            check_name(value)
        except InvalidInput as error:
            raise ValueError(str(error)) from error
        return value

    @field_validator("p2p_listen", "api_listen")
    @classmethod
    def _listen(cls, value: str) -> str:
        split_listen(value)
        return value

    @field_validator("p2p_announce", "p2p_bootstrap")
    @classmethod
    def _multiaddresses(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        for value in values:
            if not value.startswith("/"):
                raise ValueError(f'{value!r} is no multiaddress; write it as "/ip4/192.0.2.1/tcp/4001/p2p/<peer id>"')
        return values

    @field_validator("p2p_bootstrap")
    @classmethod
    def _named(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        for value in values:
            if "/p2p/" not in value:
                raise ValueError(f"{value!r} names no peer; end it with /p2p/<peer id> (spchain status shows a node's)")
        return values

    @field_validator("checkpoint")
    @classmethod
    def _a_checkpoint(cls, value: str) -> str:
        if value:
            try:
                parse_checkpoint(value)
            except InvalidInput as error:
                raise ValueError(str(error)) from error
        return value

    @field_validator("genesis_file", "key_file", "passphrase_file", "api_token_file")
    @classmethod
    def _absolute(cls, value: Path | None, info: ValidationInfo) -> Path | None:
        data_dir = info.data.get("data_dir")
        return value if value is None or data_dir is None else data_dir / value.expanduser()

    @field_validator("data_dir")
    @classmethod
    def _resolved(cls, value: Path) -> Path:
        return value.expanduser().resolve()

    @model_validator(mode="after")
    def _guarded(self) -> "NodeConfig":
        host, _ = split_listen(self.api_listen)
        if self.api_token_file is None and not is_loopback(host):
            raise ValueError(
                f"api_listen = {self.api_listen!r} is open to others and has no api_token_file: name a file with a token, "
                "or listen on 127.0.0.1"
            )
        return self


def default_data_dir() -> Path:
    """Return where a node's data lives when nobody says otherwise."""
    return user_data_path("spchain", appauthor=False)


def split_listen(text: str) -> tuple[str, int]:
    """Return host and port of "host:port"; raises `ValueError` with the remedy."""
    host, colon, port = text.rpartition(":")
    bare = host.removeprefix("[").removesuffix("]")
    bracketed = host != bare
    if not colon or not bare or not port.isascii() or not port.isdecimal() or int(port) > 65535:
        raise ValueError(f'{text!r} is no address and port; write "127.0.0.1:8080" or "[::1]:8080"')
    try:
        ipaddress.ip_address(bare)
    except ValueError:
        if bare != "localhost":
            raise ValueError(f"{bare!r} in {text!r} is no IP address; write the address to listen on") from None
    else:
        if bracketed != (":" in bare):
            raise ValueError(f'{text!r}: IPv6 addresses stand in brackets, others do not; write "[::1]:8080"')
    return bare, int(port)


def is_loopback(host: str) -> bool:
    """Tell whether only this machine can reach an address."""
    return host == "localhost" or ipaddress.ip_address(host).is_loopback


def load_config(
    data_dir: Path | None, environment: Mapping[str, str], flags: Mapping[str, object] | None = None
) -> NodeConfig:
    """Merge all sources into one checked configuration.

    Args:
        data_dir: the flag `--data-dir`, or None for `SPCHAIN_DATA_DIR` or the user's default.
        environment: the process's environment.
        flags: fields given on the command line; None means not given.

    Raises:
        InvalidInput: names file or variable, key, value and remedy.
    """
    chosen = data_dir or Path(environment.get(f"{ENVIRONMENT_PREFIX}DATA_DIR") or default_data_dir())
    values: dict[str, object] = {"data_dir": chosen}
    origins = {"data_dir": "data directory"}
    file = chosen / CONFIG_NAME
    if file.exists():
        for key, value in _read_toml(file).items():
            values[key], origins[key] = value, str(file)
    for field in NodeConfig.model_fields:
        variable = ENVIRONMENT_PREFIX + field.upper()
        if field != "data_dir" and variable in environment:
            values[field], origins[field] = _from_text(field, environment[variable]), f"environment {variable}"
    for key, given in (flags or {}).items():
        if given is not None:
            values[key], origins[key] = given, "command line"
    try:
        return NodeConfig.model_validate(values)
    except ValidationError as error:
        raise InvalidInput(_explain(error, values, origins, file)) from error


def unknown_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """Return variables that look like misspelt settings, each with the one that may be meant; others are nobody's business here."""
    known = {ENVIRONMENT_PREFIX + field.upper() for field in NodeConfig.model_fields}
    suspects = [
        name for name in environment if name.startswith(ENVIRONMENT_PREFIX) and name not in known | OTHER_VARIABLES
    ]
    near = {name: difflib.get_close_matches(name, known, 1, cutoff=0.85) for name in sorted(suspects)}
    return {name: found[0] for name, found in near.items() if found}


def render_config(values: Mapping[str, object]) -> str:
    """Return the text of a `config.toml`: the given fields set, all others as comments with their defaults and meaning."""
    lines = [
        "# Configuration of an SPChain node. What is commented out shows the default.",
        "# Environment variables SPCHAIN_<FIELD> and flags of `spchain node run` override this file.",
    ]
    for field, info in NodeConfig.model_fields.items():
        if field == "data_dir":
            continue
        lines.extend(["", *(f"# {line}" for line in (info.description or "").splitlines())])
        value = values.get(field)
        if value is not None:
            lines.append(f"{field} = {_toml(value)}")
        else:
            lines.append(f"# {field} = {_toml('' if info.default is None else info.default)}")
    return "\n".join(lines) + "\n"


def _read_toml(file: Path) -> dict[str, object]:
    raw = read_file(file, MAX_CONFIG_BYTES, "configuration")
    try:
        table = tomllib.loads(raw.decode())
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{file} is not UTF-8 at byte {error.start}; save it as UTF-8") from error
    except tomllib.TOMLDecodeError as error:
        raise InvalidInput(
            f"{file} is no TOML: {error}; correct that line (docs/reference/configuration.md has all settings)"
        ) from error
    for key in table:
        if key not in NodeConfig.model_fields:
            near = difflib.get_close_matches(key, NodeConfig.model_fields, 1)
            known = ", ".join(sorted(set(NodeConfig.model_fields) - {"data_dir"}))
            remedy = f"did you mean {near[0]!r}?" if near else f"known keys: {known}"
            raise InvalidInput(f"{file}: unknown key {key!r} = {table[key]!r}; {remedy}")
    if "data_dir" in table:
        raise InvalidInput(f"{file}: data_dir is the directory of this very file; remove the key")
    return table


def _from_text(field: str, text: str) -> object:
    if get_origin(NodeConfig.model_fields[field].annotation) is tuple:
        return [item.strip() for item in text.split(",") if item.strip()]
    return text


def _explain(error: ValidationError, values: Mapping[str, object], origins: Mapping[str, str], file: Path) -> str:
    texts = []
    for fault in error.errors(include_url=False, include_context=False, include_input=False):
        message = fault["msg"].removeprefix("Value error, ")
        if not fault["loc"]:
            texts.append(f"configuration ({file}): {message}")
            continue
        key = str(fault["loc"][0])
        if fault["type"] == "extra_forbidden":
            texts.append(f"{origins.get(key, 'configuration')}: unknown key {key!r}; remove it")
            continue
        field = NodeConfig.model_fields[key]
        meaning = (field.description or "").replace("\n", " ")
        texts.append(f"{origins.get(key, 'configuration')}: {key} = {values.get(key)!r}: {message}. {key}: {meaning}")
    return "\n".join(texts)


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, tuple | list):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    # A basic string of TOML takes the escapes of JSON (control characters as \uXXXX; DEL needs one, too).
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
