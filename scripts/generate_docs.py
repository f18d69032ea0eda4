# SPDX-License-Identifier: GPL-3.0-or-later
"""Writes the pages of docs/reference/ that follow from the code, or tells which are stale (`--check`).

The protocol reference reads the source, not the running program: each field of a wire type has its meaning as a string
literal right beneath it, and those literals are the page. tests/house fails when a field has none or the page is stale.
"""

import argparse
import ast
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from scripts.markdown import GENERATED, page, table
from scripts.reference_cli import cli_page
from scripts.reference_http import http_page

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("ledger", "consensus", "contracts", "records", "p2p", "node", "simulation")
REFERENCE = Path("docs/reference")


# ---------------------------------------------------------------- reading the source


@dataclass(frozen=True)
class Field:
    """One field of a struct as written in the source."""

    name: str
    """Its name."""
    annotation: ast.expr
    """Its type."""
    meaning: str | None
    """The literal beneath it, or None where it is missing."""
    line: int
    """Line of the field, from 1."""


@dataclass(frozen=True)
class Struct:
    """One msgspec struct as written in the source."""

    module: Path
    """File, relative to the root of the tree."""
    name: str
    """Name of the class."""
    meaning: str | None
    """Docstring of the class."""
    tag: int | None
    """Leading integer that tells the members of a union apart."""
    is_wire: bool
    """Whether its encoding leaves the process (an array), rather than being a value in memory only."""
    fields: tuple[Field, ...]
    """Fields in the order of encoding."""


@dataclass(frozen=True)
class Named:
    """A documented module-level name: a limit, a field type or a union."""

    name: str
    """The name."""
    value: ast.expr
    """What it stands for."""
    meaning: str | None
    """The literal beneath it."""


def source_files() -> list[Path]:
    """Return every module of the packages, relative to the root, sorted."""
    return sorted(path.relative_to(ROOT) for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def parse(module: Path) -> ast.Module:
    """Return the syntax tree of a file given relative to the root."""
    return ast.parse((ROOT / module).read_text(encoding="utf-8"), filename=str(module))


def _literal(node: ast.stmt | None) -> str | None:
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
        return " ".join(node.value.value.split())
    return None


def _with_next(body: list[ast.stmt]) -> Iterator[tuple[ast.stmt, str | None]]:
    for index, node in enumerate(body):
        yield node, _literal(body[index + 1] if index + 1 < len(body) else None)


def _base_names(node: ast.ClassDef) -> set[str]:
    return {base.attr if isinstance(base, ast.Attribute) else getattr(base, "id", "") for base in node.bases}


def _is_class_variable(annotation: ast.expr) -> bool:
    target = annotation.value if isinstance(annotation, ast.Subscript) else annotation
    return ast.unparse(target).rpartition(".")[2] == "ClassVar"


def structs(module: Path) -> Iterator[Struct]:
    """Yield the msgspec structs of a module, those for the wire and those for memory."""
    for node in parse(module).body:
        if not isinstance(node, ast.ClassDef) or not _base_names(node) & {"Wire", "Struct"}:
            continue
        options = {word.arg: getattr(word.value, "value", None) for word in node.keywords}
        fields = tuple(
            Field(part.target.id, part.annotation, meaning, part.lineno)
            for part, meaning in _with_next(node.body)
            if isinstance(part, ast.AnnAssign)
            and isinstance(part.target, ast.Name)
            and not _is_class_variable(part.annotation)
        )
        tag = options.get("tag")
        yield Struct(
            module=module,
            name=node.name,
            meaning=ast.get_docstring(node),
            tag=tag if isinstance(tag, int) else None,
            is_wire="Wire" in _base_names(node) or bool(options.get("array_like")),
            fields=fields,
        )


def named_values(module: Path) -> Iterator[Named]:
    """Yield the module-level assignments `NAME = value`, with the literal beneath each."""
    for node, meaning in _with_next(parse(module).body):
        if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            yield Named(node.targets[0].id, node.value, meaning)


# ---------------------------------------------------------------- types in words


def type_in_words(node: ast.expr) -> str:
    """Return a type as the page shows it: `Annotated[int, Meta(ge=1)]` becomes "int (at least 1)"."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        return f"{type_in_words(node.left)} or {type_in_words(node.right)}"
    if isinstance(node, ast.Constant):
        return "nil" if node.value is None else f'"{node.value!s}"'
    if not isinstance(node, ast.Subscript):
        return f"`{ast.unparse(node)}`"
    parts = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
    outer = ast.unparse(node.value).rpartition(".")[2]
    if outer == "Annotated":
        limits = ", ".join(_limits(part) for part in parts[1:] if isinstance(part, ast.Call))
        return f"{type_in_words(parts[0])} ({limits})" if limits else type_in_words(parts[0])
    if outer == "Literal":
        return "one of " + ", ".join(type_in_words(part) for part in parts)
    if outer == "tuple" and isinstance(parts[-1], ast.Constant) and parts[-1].value is Ellipsis:
        return f"array of {type_in_words(parts[0])}"
    if outer == "tuple":
        return "array of " + ", ".join(type_in_words(part) for part in parts)
    return f"`{ast.unparse(node)}`"


def _limits(meta: ast.Call) -> str:
    values = {word.arg: ast.unparse(word.value).replace(" ** ", "^").replace("_MIB", "MiB") for word in meta.keywords}
    words = []
    for low, high, unit in (("ge", "le", ""), ("min_length", "max_length", " long")):
        at_least, at_most = values.get(low), values.get(high)
        if at_least is not None and at_least == at_most:
            words.append(f"{at_least}{unit}")
        elif at_least is not None and at_most is not None:
            words.append(f"{at_least} to {at_most}{unit}")
        elif at_least is not None:
            words.append(f"at least {at_least}{unit}")
        elif at_most is not None:
            words.append(f"at most {at_most}{unit}")
    if "pattern" in values:
        words.append(f"matching `{ast.literal_eval(values['pattern'])}`")
    return ", ".join(words)


# ---------------------------------------------------------------- pages


def _first_paragraph(text: str | None) -> str:
    return " ".join((text or "").split("\n\n", maxsplit=1)[0].split())


# The order in which a reader needs them; modules that are not named here follow in alphabetical order.
READING_ORDER = (
    "ledger/transactions.py",
    "ledger/load.py",
    "ledger/bodies.py",
    "ledger/patients.py",
    "ledger/sharing.py",
    "ledger/labels.py",
    "ledger/guardianship.py",
    "ledger/emergency.py",
    "ledger/blocks.py",
    "ledger/genesis.py",
    "ledger/offchain.py",
    "contracts/requests.py",
    "contracts/batch_data.py",
    "consensus/messages.py",
    "consensus/block_tree.py",
    "node/wire.py",
    "p2p/hello.py",
    "p2p/discovery.py",
    "records/envelope.py",
    "ledger/transition.py",
    "ledger/state.py",
    "ledger/store.py",
    "consensus/safety.py",
    "node/safety_file.py",
)


LIMITS = Path("ledger/load.py")
"""Holds no type, but limits that whoever votes has to know."""


def _reading_order(module: Path) -> tuple[int, str]:
    name = module.as_posix()
    return (READING_ORDER.index(name) if name in READING_ORDER else len(READING_ORDER), name)


def _struct_section(struct: Struct) -> list[str]:
    lines = [f"### {struct.name.lstrip('_')}", ""]
    if struct.meaning:
        lines += [" ".join(struct.meaning.split()), ""]
    first = 0
    rows = []
    if struct.tag is not None:
        rows.append(["0", "", str(struct.tag), "Tag: which kind of the union this is."])
        first = 1
    for position, field in enumerate(struct.fields, first):
        rows.append([str(position), f"`{field.name}`", type_in_words(field.annotation), field.meaning or ""])
    return lines + table(["position", "field", "type", "meaning"], rows)


def _module_section(module: Path) -> list[str]:
    tree = parse(module)
    lines = [f"## `{module.with_suffix('').as_posix().replace('/', '.')}`", ""]
    lines += [_first_paragraph(ast.get_docstring(tree)), ""]
    values = [value for value in named_values(module) if value.meaning and value.name.isupper()]
    if values:
        rows = [[f"`{value.name}`", f"`{ast.unparse(value.value)}`", value.meaning or ""] for value in values]
        lines += table(["constant", "value", "why"], rows)
    for struct in structs(module):
        if struct.is_wire and struct.fields:
            lines += _struct_section(struct)
    for value in named_values(module):
        if isinstance(value.value, ast.BinOp) and isinstance(value.value.op, ast.BitOr) and not value.name.isupper():
            lines += [f"`{value.name}` is {type_in_words(value.value)}, told apart by the tag.", ""]
    return lines


def _enum_rows(module: Path, name: str) -> list[list[str]]:
    for node in parse(module).body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return [
                [f"`{target.id}`", f"`{part.value.value!s}`"]
                for part in node.body
                if isinstance(part, ast.Assign) and isinstance(part.value, ast.Constant)
                for target in part.targets
                if isinstance(target, ast.Name)
            ]
    raise SystemExit(f"scripts/generate_docs.py: {module} has no class {name}; say there where it went")


def _meaning_rows(module: Path, name: str) -> list[list[str]]:
    """Return value and meaning of each member of an enumeration, in the order of the source."""
    body = next(node for node in parse(module).body if isinstance(node, ast.ClassDef) and node.name == name).body
    return [
        [f"`{part.value.value!s}`", meaning or ""]
        for part, meaning in _with_next(body)
        if isinstance(part, ast.Assign) and isinstance(part.value, ast.Constant)
    ]


def protocol_page() -> str:
    """Return the protocol reference: every type whose bytes leave the process, and the limits of a microblock."""
    codec, hashing, errors = Path("ledger/codec.py"), Path("ledger/crypto/hashing.py"), Path("ledger/errors.py")
    lines = [
        GENERATED,
        "",
        "# Protocol reference",
        "",
        "Every type whose bytes are sent, hashed, signed or stored. A value is a MessagePack array of its fields in the order",
        "of the tables; the member of a union has its integer tag in front. Integers take their shortest form, and bytes that",
        "do not re-encode to themselves are refused, so that each value has exactly one encoding.",
        "",
        "## Field types",
        "",
    ]
    rows = [
        [f"`{value.name}`", type_in_words(value.value), value.meaning]
        for value in named_values(codec)
        if value.meaning and isinstance(value.value, ast.Subscript)
    ]
    lines += table(["name", "encoding", "meaning"], rows)
    lines += ["## Hashes", "", _first_paragraph(ast.get_docstring(parse(hashing))), ""]
    lines += ["With t = SHA-256(tag text), a hash is SHA-256(t ‖ t ‖ parts).", ""]
    lines += table(["tag", "text"], _enum_rows(hashing, "Tag"))
    typed = (path for path in source_files() if path != codec and any(part.is_wire for part in structs(path)))
    modules = [LIMITS, *typed]
    for module in sorted(modules, key=_reading_order):
        lines += _module_section(module)
    lines += ["## Reasons for refusing a transaction", "", "Stable names that reach clients.", ""]
    lines += table(["reason", "name"], [[text, name] for name, text in _enum_rows(errors, "RejectionReason")])
    lines += ["## Reasons for which a proxy refuses", "", "In answers and access logs.", ""]
    lines += table(["reason", "meaning"], _meaning_rows(Path("records/requests.py"), "RefusalReason"))
    return page(lines)


def configuration_page() -> str:
    """Return the reference of a node's settings."""
    module = Path("node/config.py")
    body = next(
        node for node in parse(module).body if isinstance(node, ast.ClassDef) and node.name == "NodeConfig"
    ).body
    rows = [
        [
            f"`{part.target.id}`",
            f"`SPCHAIN_{part.target.id.upper()}`",
            type_in_words(part.annotation).replace("or nil", "or none"),
            "" if part.value is None else f"`{_default(part.value)}`",
            meaning or "",
        ]
        for part, meaning in _with_next(body)
        if isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name)
    ]
    lines = [
        GENERATED,
        "",
        "# Configuration reference",
        "",
        "Later sources win: defaults, `config.toml` in the data directory, the environment, flags of `spchain node run`.",
        "Lists in the environment are separated by commas; relative paths are relative to the data directory. An unknown key",
        "is refused. What all nodes of a network must agree on stands in the genesis, not here.",
        "",
        *table(["key", "environment", "type", "default", "meaning"], rows),
    ]
    return page(lines)


def _default(node: ast.expr) -> str:
    if isinstance(node, ast.Call) and len(node.args) == 1:
        return _default(node.args[0])
    text = ast.unparse(node).replace("_MIB", "MiB").replace("_GIB", "GiB").replace("'", '"')
    return {"()": "[]", "None": "none", "False": "false", "True": "true"}.get(text, text)


PAGES: dict[Path, Callable[[], str]] = {
    REFERENCE / "protocol.md": protocol_page,
    REFERENCE / "configuration.md": configuration_page,
    REFERENCE / "http-api.md": http_page,
    REFERENCE / "cli.md": cli_page,
}
"""Each generated page, relative to the root, with what writes it."""


def stale_pages() -> list[Path]:
    """Return the generated pages that differ from what the source says now."""

    def committed(path: Path) -> str:
        return (ROOT / path).read_text(encoding="utf-8") if (ROOT / path).exists() else ""

    return [path for path, write in PAGES.items() if committed(path) != write()]


def main() -> int:
    """Write or check the pages; returns the exit code."""
    parser = argparse.ArgumentParser(prog="scripts/docs", description="Write the generated pages of docs/reference/.")
    parser.add_argument("--check", action="store_true", help="only tell which pages are stale; exit 1 if any is")
    check = parser.parse_args().check
    stale = stale_pages()
    for path in stale:
        if check:
            print(f"{path}: stale; run scripts/docs and commit the result")
            continue
        (ROOT / path).parent.mkdir(parents=True, exist_ok=True)
        (ROOT / path).write_text(PAGES[path](), encoding="utf-8")
        print(f"{path}: written")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
