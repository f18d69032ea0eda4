# SPDX-License-Identifier: GPL-3.0-or-later
"""The schema is the protocol: each field says what it means, right beneath it."""

import ast
from collections.abc import Iterator
from pathlib import Path

from scripts.generate_docs import Struct, source_files, structs, type_in_words
from tests.house.tree import ROOT, report


def _structs() -> Iterator[Struct]:
    for module in source_files():
        yield from structs(module)


def test_each_field_of_a_struct_has_its_meaning_beneath_it() -> None:
    report(
        f"{struct.module.as_posix()}:{field.line}: {struct.name}.{field.name} has no meaning; "
        "put a string literal with meaning and unit right beneath it"
        for struct in _structs()
        # Private structs that never travel mirror somebody else's format, which documents its own fields.
        if struct.is_wire or not struct.name.startswith("_")
        for field in struct.fields
        if not field.meaning
    )


def test_each_wire_type_of_a_public_name_says_what_it_is() -> None:
    report(
        f"{struct.module.as_posix()}: {struct.name} has no docstring; say what it is in a sentence"
        for struct in _structs()
        if struct.is_wire and not struct.meaning and not struct.name.startswith("_")
    )


def test_each_setting_has_its_meaning_beneath_it() -> None:
    def broken() -> Iterator[str]:
        for module in source_files():
            if "config" not in module.stem and "settings" not in module.stem:
                continue
            for node in ast.walk(ast.parse((ROOT / module).read_text(encoding="utf-8"))):
                if isinstance(node, ast.ClassDef):
                    yield from (
                        f"{module.as_posix()}:{line}: {node.name}.{field}" for field, line in _undocumented(node)
                    )

    report(f"{place} has no meaning; put a string literal with meaning and unit right beneath it" for place in broken())


def _undocumented(node: ast.ClassDef) -> Iterator[tuple[str, int]]:
    for part, following in zip(node.body, [*node.body[1:], None], strict=True):
        if not isinstance(part, ast.AnnAssign) or not isinstance(part.target, ast.Name):
            continue
        documented = isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)
        if not documented and "ClassVar" not in ast.unparse(part.annotation):
            yield part.target.id, part.lineno


def test_the_reader_finds_the_structs_that_the_program_has() -> None:
    found = {(struct.module, struct.name): [field.name for field in struct.fields] for struct in _structs()}
    assert found[Path("ledger/bodies.py"), "Transfer"] == ["recipient", "amount_microcredit"]
    assert found[Path("ledger/patients.py"), "PatientKeyblock"][0] == "patient"


def test_types_are_put_in_words() -> None:
    def words(source: str) -> str:
        return type_in_words(ast.parse(source, mode="eval").body)

    assert words("Annotated[int, msgspec.Meta(ge=1, le=2**32)]") == "`int` (1 to 2^32)"
    assert words("Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]") == "`bytes` (32 long)"
    assert (
        words("Annotated[tuple[Digest, ...], msgspec.Meta(max_length=LIMIT)]")
        == "array of `Digest` (at most LIMIT long)"
    )
    assert words("Certificate | None") == "`Certificate` or nil"
    assert words("Literal['final', 'amended']") == 'one of "final", "amended"'
