# SPDX-License-Identifier: GPL-3.0-or-later
"""What is installed is what is used, pinned, and exactly our folders."""

import ast
import configparser
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import NormalizedName, canonicalize_name

from tests.house.tree import PACKAGES, ROOT, files, name, report

UNTIL_NEEDED: dict[str, str] = {}
"""Distributions that nothing imports, with the reason why they are installed all the same."""


def _setup_cfg() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    return parser


def _lines(section: str, key: str) -> list[str]:
    return [line for line in _setup_cfg()[section][key].splitlines() if line and not line.startswith("#")]


def _runtime() -> dict[NormalizedName, Requirement]:
    return {canonicalize_name(wish.name): wish for wish in map(Requirement, _lines("options", "install_requires"))}


def _tests() -> dict[NormalizedName, Requirement]:
    wishes = map(Requirement, _lines("options.extras_require", "test"))
    return {canonicalize_name(wish.name): wish for wish in wishes}


def _imports(*roots: str) -> Iterator[tuple[Path, int, str]]:
    for path in files(*roots, suffix=".py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                yield path, node.lineno, node.module or ""
            elif isinstance(node, ast.Import):
                yield from ((path, node.lineno, alias.name) for alias in node.names)
            elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
                yield from ((path, node.lineno, str(arg.value)) for arg in node.args if isinstance(arg, ast.Constant))


def _third_party(module: str) -> bool:
    return module.partition(".")[0] not in {*sys.stdlib_module_names, *PACKAGES, "scripts", "tests"}


def _providers(module: str) -> set[NormalizedName]:
    # `google` is shared by many distributions; the only one of ours is protobuf.
    if module.startswith("google.protobuf"):
        return {canonicalize_name("protobuf")}
    return {canonicalize_name(found) for found in packages_distributions().get(module.partition(".")[0], [])}


def test_each_import_is_of_a_declared_dependency() -> None:
    def broken() -> Iterator[str]:
        for path, line, module in _imports(*PACKAGES):
            if _third_party(module) and not _providers(module) & _runtime().keys():
                yield f"{name(path)}:{line}: imports {module}; add its distribution to install_requires in setup.cfg"

    report(broken())


def test_each_declared_dependency_is_used() -> None:
    used = {
        found for _, _, module in _imports(*PACKAGES, "scripts") if _third_party(module) for found in _providers(module)
    }
    report(
        f"setup.cfg: nothing imports {wish}; remove it from install_requires"
        for wish in sorted(_runtime())
        if wish not in used and wish not in UNTIL_NEEDED
    )


def test_each_dependency_is_pinned_to_a_version_within_its_bounds() -> None:
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    pins = {canonicalize_name(pin): version for pin, version in re.findall(r"^([\w.-]+)==(\S+)$", text, re.MULTILINE)}

    def broken() -> Iterator[str]:
        for wish, requirement in {**_runtime(), **_tests()}.items():
            if wish not in pins:
                yield f"constraints.txt: {wish} is not pinned; run scripts/lock"
            elif not requirement.specifier.contains(pins[wish]):
                yield f"constraints.txt: {wish}=={pins[wish]} is outside {requirement.specifier}; run scripts/lock"

    report(broken())


def test_the_two_poseidon_packages_never_meet() -> None:
    # Both install a module of the same name; the other one hashes differently.
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert not [pin for pin in pins if pin.startswith(("light-poseidon==", "light_poseidon=="))]


def test_exactly_our_folders_are_packages() -> None:
    installed = [pattern.removesuffix("*") for pattern in _lines("options.packages.find", "include")]
    with (ROOT / "pyproject.toml").open("rb") as file:
        linted = tomllib.load(file)["tool"]["importlinter"]["root_packages"]
    on_disk = sorted(path.parent.name for path in ROOT.glob("*/__init__.py"))
    assert sorted(installed) == sorted(linted) == on_disk == sorted(PACKAGES)


def test_scripts_can_be_run_as_they_are() -> None:
    def broken() -> Iterator[str]:
        for path in files("scripts", ".ci"):
            if path.suffix or not (path.parent.name == "scripts" or path.read_bytes().startswith(b"#!")):
                continue
            if not os.access(path, os.X_OK):
                yield f"{name(path)}:1: not executable; chmod +x and commit the mode"
            first = path.read_text(encoding="utf-8").splitlines()[0]
            if first not in {"#!/usr/bin/env bash", "#!/usr/bin/env python3"}:
                yield f"{name(path)}:1: starts with {first!r}; use #!/usr/bin/env bash"
            elif first.endswith("bash"):
                checked = subprocess.run(["bash", "-n", path], check=False, capture_output=True, text=True)
                if checked.returncode:
                    yield f"{name(path)}: {checked.stderr.strip()}"

    report(broken())
