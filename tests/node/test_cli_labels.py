# SPDX-License-Identifier: GPL-3.0-or-later
"""`spchain label`: asked, permitted, applied; one permission for one label once, and what a node shows of it is checked."""

import io
import json
from pathlib import Path

import pytest

from ledger.errors import InvalidInput
from node.api.sharing_models import Labels
from node.cli.labels import confirm
from node.client import NodeClient
from node.consent_client import ConsentClient
from node.record_checks import check_record
from tests.node.care_cli import BUNDLE, MARIA, Spchain, answer, client, give, node, refused, spchain
from tests.node.care_kit import INSTITUTIONS

__all__ = ["client", "node", "spchain"]

ASK = ("label", "ask", "0", "--patient", "maria.json", "--key", "h1.json", "--status", "entered-in-error")


def ask(spchain: Spchain, *arguments: str, out: str = "request.label") -> None:
    asked = answer(spchain(*ASK, "--label", "wrong-patient", "-o", out, *arguments, "--json"))
    assert asked["institution"] == INSTITUTIONS[0].address.hex()


def permit(spchain: Spchain, request: str = "request.label", out: str = "permission.label") -> None:
    permitted = answer(spchain("label", "permit", request, "--key", "maria.json", "-o", out, "--yes", "--json"))
    assert permitted["patient"] == MARIA.address.hex()


def apply(spchain: Spchain, permission: str = "permission.label") -> int:
    height = answer(spchain("label", "apply", permission, "--key", "h1.json", "--json"))["height"]
    assert isinstance(height, int)
    return height


def test_a_record_is_labelled_and_stays_the_same_record(spchain: Spchain) -> None:
    before = answer(spchain("record", "list", "--patient", "maria.json", "--json"))[0]
    ask(spchain, "--replaced-by", "1", "--may-erase", "--note", "Another person's blood count.")
    permit(spchain)
    height = apply(spchain)
    found = answer(spchain("label", "history", "0", "--patient", "maria.json", "--json"))
    after = found["record"]
    assert after["envelope"]["status"] == "entered-in-error"
    for field in ("record_id", "chameleon_hash", "previous", "opening", "committed_height"):
        assert after[field] == before[field]
    (label,) = found["labels"]
    assert (label["committed_height"], label["permission"]["label"]) == (height, "wrong-patient")
    shown = spchain("label", "history", "0", "--patient", "maria.json").stdout
    for text in ("wrong-patient", "Hospital 1", "record 1", "no institution has confirmed"):
        assert text in shown
    # The labelled record is still checked and read, by its patient and by whom it was shared with.
    given = give(spchain)
    for reading in (
        ("record", "get", "0", "--patient", "maria.json"),
        ("read", given["grant_id"], "0", "--key", "h2.json"),
    ):
        result = spchain(*reading)
        assert result.stdout_bytes == BUNDLE
        assert "warning: record 0 is entered-in-error: wrong-patient" in result.stderr
    assert "warning" not in spchain("record", "get", "1", "--patient", "maria.json").stderr
    exported = answer(spchain("audit", "--key", "maria.json", "--fhir", "fhir", "--json"))["files"]
    provenance = next(json.loads(Path(file).read_bytes()) for file in exported if "Provenance" in file)
    assert provenance["reason"] == [{"text": "wrong-patient"}]


def test_a_record_without_labels_has_an_empty_history(spchain: Spchain) -> None:
    assert "never labelled" in spchain("label", "history", "1", "--patient", "maria.json").stdout
    refused(spchain("label", "history", "9", "--patient", "maria.json"), 5, "9")


def test_one_permission_serves_once_and_a_second_label_needs_another(spchain: Spchain) -> None:
    ask(spchain)
    ask(spchain, out="second.label")
    permit(spchain)
    permit(spchain, "second.label", "second-permission.label")
    apply(spchain)
    refused(spchain("label", "apply", "permission.label", "--key", "h1.json"), 3, "serves once")
    refused(spchain("label", "apply", "second-permission.label", "--key", "h1.json"), 3, "serves once")
    refused(spchain("label", "permit", "request.label", "--key", "maria.json", "-o", "x", "--yes"), 3, "ask anew")
    ask(spchain, out="third.label")
    permit(spchain, "third.label", "third-permission.label")
    apply(spchain, "third-permission.label")
    assert len(answer(spchain("label", "history", "0", "--patient", "maria.json", "--json"))["labels"]) == 2


def test_another_institution_can_neither_open_nor_use_a_permission(spchain: Spchain) -> None:
    ask(spchain)
    permit(spchain)
    refused(spchain("label", "apply", "permission.label", "--key", "h2.json"), 3, "")
    assert answer(spchain("label", "history", "0", "--patient", "maria.json", "--json"))["labels"] == []


def test_only_the_patient_permits(spchain: Spchain) -> None:
    ask(spchain)
    refused(spchain("label", "permit", "request.label", "--key", "paul.json", "-o", "x", "--yes"), 3, "--handover")
    assert not Path("x").exists()


def test_nobody_signs_unseen_in_a_script(spchain: Spchain) -> None:
    ask(spchain)
    refused(spchain("label", "permit", "request.label", "--key", "maria.json", "-o", "x"), 3, "--yes")
    assert not Path("x").exists()


class Terminal(io.StringIO):
    """Somebody who sits there and answers."""

    def isatty(self) -> bool:
        return True


def test_a_no_on_a_terminal_is_an_answer_and_no_fault_of_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    for text, says_yes in (("n\n", False), ("\n", False), ("y\n", True)):
        monkeypatch.setattr("sys.stdin", Terminal(text))
        if says_yes:
            confirm({"record": "0"}, "permit this label?", yes=False)
        else:
            with pytest.raises(InvalidInput, match="nothing was signed"):
                confirm({"record": "0"}, "permit this label?", yes=False)


@pytest.mark.parametrize("position", [0, 40, -1])
def test_files_that_were_changed_are_refused(spchain: Spchain, position: int) -> None:
    ask(spchain)
    permit(spchain)
    for file, command in (
        ("request.label", ("label", "permit", "request.label", "--key", "maria.json", "-o", "x", "--yes")),
        ("permission.label", ("label", "apply", "permission.label", "--key", "h1.json")),
    ):
        raw = bytearray(Path(file).read_bytes())
        raw[position] ^= 1
        Path(file).write_bytes(raw)
        assert spchain(*command).exit_code in (3, 5)
    assert answer(spchain("label", "history", "0", "--patient", "maria.json", "--json"))["labels"] == []


def test_wrong_questions_say_what_to_do(spchain: Spchain) -> None:
    wrong = ("label", "ask", "0", "--patient", "maria.json", "--key", "h1.json", "-o", "x", "--label", "why")
    refused(spchain(*wrong, "--status", "final"), 3, "entered-in-error")
    refused(spchain(*ASK, "--label", "", "-o", "x"), 3, "")
    refused(spchain(*ASK, "--label", "why", "--replaced-by", "0", "-o", "x"), 3, "cannot replace itself")
    refused(spchain("label", "apply", "maria.json", "--key", "h1.json"), 3, "")
    ask(spchain)
    permit(spchain)
    refused(
        spchain("label", "apply", "permission.label", "--key", "h1.json", "--proving-key", "h1.json"), 3, "proving key"
    )


def test_a_node_that_shows_another_history_is_caught(
    spchain: Spchain, client: NodeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask(spchain)
    permit(spchain)
    apply(spchain)
    record = client.record(MARIA.address, 0)
    check_record(client, record)
    genuine = client.consent.labels(MARIA.address, 0)
    (label,) = genuine.labels
    amended = label.envelope.model_copy(update={"status": "amended"})
    lies = [
        (record, genuine.model_copy(update={"labels": ()}), "does not begin"),
        (record, _with(genuine, previous=label.envelope), "does not begin"),
        (record, _with(genuine, envelope=amended), "more than was permitted"),
        (record, _with(genuine, signer=INSTITUTIONS[3].public.public_key), "not signed"),
        (record, _with(genuine, proof=bytes(256)), "proof"),
        (record, _with(genuine, permission=label.permission.model_copy(update={"number": 1})), "something else"),
        (record, _with(genuine, permission=label.permission.model_copy(update={"label": "x"})), "not signed"),
        (record, _with(genuine, permission=label.permission.model_copy(update={"status": "final"})), "cannot be"),
        (record.model_copy(update={"envelope": amended}), genuine, "newest label"),
        (record.model_copy(update={"label_count": 0}), genuine, "not the committed one"),
    ]
    for shown, history, text in lies:
        monkeypatch.setattr(ConsentClient, "labels", lambda *_, history=history: history)
        with pytest.raises(InvalidInput, match=text):
            check_record(client, shown)


def _with(history: Labels, **changes: object) -> Labels:
    return history.model_copy(update={"labels": (history.labels[0].model_copy(update=changes),)})
