# SPDX-License-Identifier: GPL-3.0-or-later
"""`spchain emergency`: nobody reads before the quorum, after the end, or once the patient has said no."""

from typing import Any

import pytest

from node.api import models
from node.client import NodeClient
from node.emergency_actions import emergency_of
from tests.node.care_cli import BUNDLE, MARIA, Spchain, answer, client, node, refused, spchain
from tests.node.care_kit import INSTITUTIONS, CareNode

__all__ = ["client", "node", "spchain"]

MARIA_HEX = MARIA.address.hex()
READ = ("emergency", "read", MARIA_HEX, "0", "--key", "h2.json")
APPROVE = ("emergency", "approve", MARIA_HEX, "0", "--key")


@pytest.fixture
def grant(spchain: Spchain) -> str:
    chosen = [part for identity in INSTITUTIONS[2:] for part in ("--proxy", identity.address.hex())]
    prepare = ("emergency", "prepare", "Hospital 2", "--until", "52w", "--key", "maria.json", "--approvals", "2")
    (given,) = answer(spchain(*prepare, *chosen, "--json"))
    assert given["emergency_approvals"] == 2
    identifier = given["grant_id"]
    assert isinstance(identifier, str)
    return identifier


def open_one(spchain: Spchain, grant: str, *arguments: str) -> Any:  # noqa: ANN401
    return answer(
        spchain("emergency", "open", grant, "--reason", "unconscious", "--key", "h2.json", *arguments, "--json")
    )


def test_a_quorum_opens_the_records_and_the_patient_is_told_and_reviews(spchain: Spchain, grant: str) -> None:
    refused(spchain("read", grant, "0", "--key", "h2.json", "--purpose", "ETREAT"), 3, "asleep")
    opened = open_one(spchain, grant)
    assert (opened["number"], opened["needed"], opened["reason"]) == (0, 2, "unconscious")
    waiting = answer(spchain("emergency", "list", "--proxy", "h3.json", "--json"))
    assert [one["number"] for one in waiting] == [0]
    first = answer(spchain(*APPROVE, "h3.json", "--json"))
    assert len(first["approvals"]) == 1
    assert answer(spchain("emergency", "list", "--proxy", "h3.json", "--json")) == []
    refused(spchain(*READ, "0"), 3, "asleep")
    assert "it is open" in spchain(*APPROVE, "h4.json").stdout

    assert spchain(*READ, "0").stdout_bytes == BUNDLE
    assert len(answer(spchain(*READ, "-o", "records", "--json"))["records"]) == 2
    result = spchain("audit", "--key", "maria.json", "--json")
    assert {entry["emergency"] for entry in answer(result)["entries"] if not entry["reason"]} == {0}
    assert "1 emergency waits for your review" in result.stderr
    assert "ETREAT, emergency 0" in spchain("audit", "--key", "maria.json").stdout
    (queued,) = answer(spchain("emergency", "list", "--json"))
    assert queued["patient"] == MARIA_HEX
    assert "not reviewed" in spchain("emergency", "list", "maria.json").stdout

    review = ("emergency", "review", MARIA_HEX, "0", "--key")
    refused(spchain(*review, "h2.json", "--justified"), 3, "not_permitted")
    assert answer(spchain(*review, "maria.json", "--justified", "--json"))["verdict"] == "justified"
    assert answer(spchain("emergency", "list", "--json")) == []
    assert "for your review" not in spchain("audit", "--key", "maria.json").stderr
    refused(spchain(*review, "maria.json", "--unjustified"), 3, "already")


def test_what_the_patient_calls_unjustified_ends_at_once_and_stays_in_the_queue(spchain: Spchain, grant: str) -> None:
    open_one(spchain, grant)
    for proxy in ("h3.json", "h4.json"):
        assert spchain(*APPROVE, proxy).exit_code == 0
    assert spchain(*READ, "0").exit_code == 0
    assert spchain("emergency", "review", "maria.json", "0", "--key", "maria.json", "--unjustified").exit_code == 0
    refused(spchain(*READ, "0"), 3, "asleep")
    assert len(answer(spchain("emergency", "list", "--json"))) == 1


def test_an_emergency_ends_by_its_time(spchain: Spchain, grant: str, node: CareNode) -> None:
    opened = open_one(spchain, grant, "--until", "10m")
    for proxy in ("h3.json", "h4.json"):
        assert spchain(*APPROVE, proxy).exit_code == 0
    while node.store.head().timestamp_ms < opened["until_ms"]:
        node.commit([])
    refused(spchain(*READ, "0"), 3, "asleep")


def test_only_the_grantee_opens_and_only_proxies_approve_once(spchain: Spchain, grant: str) -> None:
    other = ("emergency", "open", grant, "--reason", "trauma", "--key", "h3.json")
    refused(spchain(*other), 3, "not_permitted")
    open_one(spchain, grant)
    refused(spchain(*APPROVE, "h1.json"), 3, "not_a_proxy")
    refused(spchain(*APPROVE, "h2.json"), 3, "not_a_proxy")
    assert spchain(*APPROVE, "h3.json").exit_code == 0
    refused(spchain(*APPROVE, "h3.json"), 3, "already")
    refused(spchain("emergency", "open", grant, "--reason", "stroke", "--key", "h2.json"), 3, "emergency_open")
    refused(spchain("emergency", "read", MARIA_HEX, "0", "0", "--key", "h3.json"), 3, "")


def test_emergencies_beyond_the_first_page_are_found(
    spchain: Spchain, client: NodeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare = ("emergency", "prepare", "Hospital 2", "--until", "52w", "--approvals", "1")
    numbers: dict[str, list[int]] = {}
    for patient, count in (("maria", 3), ("paul", 2)):
        for number in range(count):
            (given,) = answer(spchain(*prepare, "--key", f"{patient}.json", "--json"))
            assert open_one(spchain, given["grant_id"])["number"] == number
            proxy = next(
                f"h{place}.json"
                for place, identity in enumerate(INSTITUTIONS, 1)
                if identity.address.hex() == given["proxies"][0]["address"]
            )
            assert spchain("emergency", "approve", f"{patient}.json", str(number), "--key", proxy).exit_code == 0
            numbers.setdefault(given["patient"], []).append(number)
    monkeypatch.setattr(models, "MAX_PAGE", 1)
    assert [one.number for one in client.consent.emergencies(MARIA.address)] == [0, 1, 2]
    assert [one.number for one in client.consent.emergencies(MARIA.address, 1)] == [1, 2]
    assert emergency_of(client, MARIA.address, 2).number == 2
    queue = [(one.patient.hex(), one.number) for one in client.consent.reviews()]
    assert queue == [(patient, number) for patient in sorted(numbers) for number in numbers[patient]]


def test_wrong_requests_say_what_is_wrong(spchain: Spchain, grant: str) -> None:
    refused(spchain("emergency", "open", grant, "--reason", "curious", "--key", "h2.json"), 3, "unconscious")
    late = ("emergency", "open", grant, "--reason", "stroke", "--key", "h2.json", "--until", "52w")
    refused(spchain(*late), 3, "must end")
    refused(spchain("emergency", "read", MARIA_HEX, "7", "0", "--key", "h2.json"), 5, "no emergency 7")
    refused(spchain("emergency", "approve", MARIA_HEX, "7", "--key", "h3.json"), 3, "no emergency 7")
    assert "no emergencies" in spchain("emergency", "list", "maria.json").stdout
