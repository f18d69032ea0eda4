# SPDX-License-Identifier: GPL-3.0-or-later
"""`spchain grant`, `revoke`, `read`, `audit`: the whole way, and every refusal with its reason and a code for scripts."""

import json
from pathlib import Path

import httpx
import pytest
from typer.testing import Result

from ledger import queries
from ledger.errors import InvalidInput
from node.api import models
from node.cli.access import Names
from node.cli.times import ahead, day, time_in
from node.client import NodeClient
from records.access_entries import decode_page
from records.answers import decode_answer, encode_answer
from tests.node.care_cli import BUNDLE, MARIA, Spchain, answer, client, give, node, refused, spchain
from tests.node.care_kit import INSTITUTIONS, CareNode

__all__ = ["client", "node", "spchain"]

H2 = INSTITUTIONS[1]


def read(spchain: Spchain, grant: str, *arguments: str, key: str = "h2.json", out: str = "out") -> Result:
    return spchain("read", grant, "--key", key, "-o", out, *arguments, "--json")


# ------------------------------------------------------------------ the whole way


def test_a_patient_grants_a_grantee_reads_and_after_the_revocation_nobody_does(
    spchain: Spchain, node: CareNode, tmp_path: Path
) -> None:
    given = give(spchain)
    assert given["is_usable"]
    assert given["fragments_file"] is None
    assert not list(tmp_path.glob("*.fragments"))
    assert H2.address.hex() not in [proxy["address"] for proxy in given["proxies"]]

    done = answer(read(spchain, given["grant_id"], "0", "1"))
    assert [Path(record["file"]).read_bytes() for record in done["records"]] == [BUNDLE, BUNDLE + b"\n"]
    assert Path(done["records"][0]["file"]).stat().st_mode & 0o777 == 0o600
    assert [proxy["outcome"] for proxy in done["proxies"]] == ["re-encrypted"] * 2

    revoked = answer(spchain("revoke", given["grant_id"], "--key", "maria.json", "--json"))
    node.proxies.sweep()
    result = read(spchain, given["grant_id"], "0", out="again")
    refused(result, 3, '"reason": "revoked"')
    assert [proxy["reason"] for proxy in json.loads(result.stderr.splitlines()[-1])["details"]] == ["revoked"] * 3
    shown = answer(spchain("grant", "show", given["grant_id"], "--json"))
    assert (shown["state"], shown["revoked_height"]) == ("revoked", revoked["height"])
    refused(spchain("revoke", given["grant_id"], "--key", "maria.json"), 3, "revoked")


def test_one_record_goes_to_standard_output_byte_for_byte(spchain: Spchain) -> None:
    given = give(spchain, "--record", "1")
    result = spchain("read", given["grant_id"], "--key", "h2.json")
    assert result.stdout_bytes == BUNDLE + b"\n"
    assert "Hospital" in result.stderr
    assert "re-encrypted" in result.stderr


def test_without_sequence_numbers_all_that_is_granted_is_read(spchain: Spchain) -> None:
    given = give(spchain)
    assert len(answer(read(spchain, given["grant_id"]))["records"]) == 2
    refused(spchain("read", given["grant_id"], "--key", "h2.json"), 3, "--output")


def test_a_file_in_the_way_is_told_before_anybody_is_asked(spchain: Spchain) -> None:
    given = give(spchain)
    answer(read(spchain, given["grant_id"], "1"))
    before = len(answer(spchain("audit", "--key", "maria.json", "--json"))["entries"])
    refused(read(spchain, given["grant_id"]), 3, "exists already")
    assert len(answer(spchain("audit", "--key", "maria.json", "--json"))["entries"]) == before
    assert len(list(Path("out").iterdir())) == 1


def test_a_patient_can_be_the_grantee(spchain: Spchain) -> None:
    given = give(spchain, grantee="paul.json")
    assert len(answer(read(spchain, given["grant_id"], key="paul.json"))["records"]) == 2


def test_grants_are_listed_for_patient_grantee_and_proxy(spchain: Spchain) -> None:
    given = give(spchain, "--record", "0", "--purpose", "HRESCH", "--purpose", "TREAT")
    assert given["purposes"] == ["HRESCH", "TREAT"]
    for who, role in (("maria.json", "patient"), ("h2.json", "grantee"), (given["proxies"][0]["address"], "proxy")):
        listed = answer(spchain("grant", "list", who, "--role", role, "--json"))
        assert [grant["grant_id"] for grant in listed] == [given["grant_id"]]
    listed = spchain("grant", "list", "maria.json").stdout
    assert "Hospital 2" in listed
    assert given["grant_id"] in listed, "whole, as all other verbs want it"
    assert "Hospital 2" in spchain("grant", "show", given["grant_id"]).stdout
    refused(spchain("grant", "list", "maria.json", "--role", "friend"), 3, "friend")
    assert spchain("grant", "list", "paul.json").stdout == "no grants\n"


def test_the_largest_page_of_an_accounts_grants_says_that_there_is_more(
    spchain: Spchain, client: NodeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {give(spchain)["grant_id"] for _ in range(3)}
    monkeypatch.setattr(models, "MAX_PAGE", 2)
    monkeypatch.setattr(queries, "MAX_PAGE", 2)
    found, start = set(), ""
    while True:
        page = httpx.get(f"{client.url}/v1/accounts/{H2.address.hex()}/grants?limit=2&start={start}").json()
        found |= {grant["grant_id"] for grant in page["grants"]}
        if page["next_start"] is None:
            break
        start = page["next_start"]
    assert found == given


# ------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [(("0", "--purpose", "HMARKT"), "wrong_purpose"), (("1",), "out_of_scope"), (("0", "1"), "out_of_scope")],
)
def test_a_read_beyond_the_grant_is_refused_by_name(spchain: Spchain, arguments: tuple[str, ...], reason: str) -> None:
    given = give(spchain, "--record", "0")
    refused(read(spchain, given["grant_id"], *arguments), 3, f'"reason": "{reason}"')


def test_a_grant_that_begins_later_is_refused_by_name(spchain: Spchain) -> None:
    given = give(spchain, "--from", "30m")
    refused(read(spchain, given["grant_id"], "0"), 3, "not_yet")


def test_somebody_else_cannot_read_by_a_grant(spchain: Spchain) -> None:
    given = give(spchain)
    refused(read(spchain, given["grant_id"], "0", key="h3.json"), 3, f"the grant lets {H2.address.hex()} read")


def test_an_unknown_grant_is_not_found(spchain: Spchain) -> None:
    refused(read(spchain, "ab" * 32, "0"), 5, "ab" * 32)
    refused(spchain("revoke", "ab" * 32, "--key", "maria.json"), 3, "ab" * 32)
    refused(spchain("revoke", "xy", "--key", "maria.json"), 3, "64 hexadecimal digits")


def test_only_the_patient_grants_and_revokes(spchain: Spchain) -> None:
    given = give(spchain)
    refused(spchain("revoke", given["grant_id"], "--key", "paul.json"), 3, "not_permitted")
    theft = ("grant", "give", "Hospital 2", "--key", "paul.json", "--patient", MARIA.address.hex(), "--until", "1h")
    refused(spchain(*theft), 3, "--handover")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--until", "soon"), "no time"),
        (("--until", "2020-01-01"), "before it begins"),
        (("--until", "1h", "--purpose", "CURIOSITY"), "CURIOSITY"),
        (("--until", "1h", "--threshold", "4"), "4 of 3"),
        (("--until", "1h", "--proxies", "5"), "ask for fewer"),
        (("--until", "1h", "--proxy", "Hospital 2", "--proxy", "h3.json"), "the grantee none"),
        (("--until", "1h", "--proxy", "Hospital 9", "--proxy", "h3.json"), "spchain institution list"),
        (("--until", "1h", "--record", "7"), "record"),
    ],
)
def test_a_wish_that_cannot_be_is_refused_and_leaves_nothing(
    spchain: Spchain, tmp_path: Path, arguments: tuple[str, ...], text: str
) -> None:
    refused(spchain("grant", "give", "Hospital 2", "--key", "maria.json", *arguments), 3, text)
    assert answer(spchain("grant", "list", "maria.json", "--json")) == []
    assert not list(tmp_path.glob("*.fragments")), "of a grant that is nowhere nobody takes fragments"


# ------------------------------------------------------------------ proxies that are down or lie


def test_a_proxy_that_was_down_gets_its_fragment_later(spchain: Spchain, node: CareNode, tmp_path: Path) -> None:
    chosen = [identity.address for identity in INSTITUTIONS[2:]]
    node.proxies.down = {chosen[0], chosen[1]}
    named = [part for address in chosen for part in ("--proxy", address.hex())]
    result = spchain("grant", "give", "h2.json", "--key", "maria.json", "--until", "1h", *named, "--json")
    (given,) = answer(result, 4)
    assert not given["is_usable"]
    assert f"spchain grant deliver {given['fragments_file']}" in result.stderr
    assert Path(given["fragments_file"]).stat().st_mode & 0o777 == 0o600
    refused(read(spchain, given["grant_id"], "0"), 3, "unreachable")

    node.proxies.down = {chosen[1]}
    assert answer(spchain("grant", "deliver", given["fragments_file"], "--json"))["is_usable"]
    assert len(answer(read(spchain, given["grant_id"], "0"))["records"]) == 1
    node.proxies.down = set()
    assert spchain("grant", "deliver", given["fragments_file"]).exit_code == 0
    assert not list(tmp_path.glob("*.fragments"))
    refused(spchain("grant", "deliver", "maria.json"), 3, "")


def test_a_proxy_that_lies_is_named_and_another_one_serves(spchain: Spchain, node: CareNode) -> None:
    given = give(spchain)
    liar = bytes.fromhex(given["proxies"][0]["address"])

    def twist(raw: bytes) -> bytes:
        found = decode_answer(raw)
        return encode_answer(found.entry, tuple(part[::-1] for part in found.fragments))

    node.proxies.changed[liar] = twist
    done = answer(read(spchain, given["grant_id"], "0"))
    faults = {proxy["proxy"]: proxy["reason"] for proxy in done["proxies"] if proxy["outcome"] == "failed"}
    assert faults == {liar.hex(): "inconsistent"}
    assert sum(proxy["outcome"] == "re-encrypted" for proxy in done["proxies"]) == 2


def test_one_proxy_of_three_may_be_down(spchain: Spchain, node: CareNode) -> None:
    given = give(spchain)
    node.proxies.down = {bytes.fromhex(given["proxies"][0]["address"])}
    done = answer(read(spchain, given["grant_id"], "0"))
    assert [proxy["outcome"] for proxy in done["proxies"]].count("failed") == 1


# ------------------------------------------------------------------ audit


def test_a_patient_sees_who_asked_and_who_was_refused_and_why(spchain: Spchain, tmp_path: Path) -> None:
    given = give(spchain, "--record", "0")
    read(spchain, given["grant_id"], "0")
    read(spchain, given["grant_id"], "0", "--purpose", "HMARKT", out="again")
    found = answer(spchain("audit", "--key", "maria.json", "--fhir", "fhir", "--json"))
    outcomes = {(entry["purpose"], entry["reason"]) for entry in found["entries"]}
    assert outcomes == {("TREAT", None), ("HMARKT", "wrong_purpose")}
    assert {entry["requester_address"] for entry in found["entries"]} == {H2.address.hex()}
    assert not any(proxy["trouble"] for proxy in found["proxies"])
    resources = [json.loads(Path(file).read_bytes()) for file in found["files"]]
    kinds = sorted(resource["resourceType"] for resource in resources)
    assert kinds.count("AuditEvent") == len(found["entries"]) == 5
    assert kinds.count("Consent") == 1
    shown = spchain("audit", "--key", "maria.json").stdout
    assert "refused: wrong_purpose" in shown
    assert "Hospital 2" in shown


def test_the_logs_as_the_proxies_signed_them_can_be_kept_for_a_proof(spchain: Spchain) -> None:
    given = give(spchain, "--record", "0")
    read(spchain, given["grant_id"], "0")
    found = answer(spchain("audit", "--key", "maria.json", "--pages", "logs", "--json"))
    pages = [decode_page(Path(file).read_bytes()) for file in found["files"]]
    assert {page.head.proxy.hex() for page in pages} == {proxy["address"] for proxy in found["proxies"]}
    assert sum(len(page.entries) for page in pages) == len(found["entries"]) > 0


def test_nobody_else_sees_a_patients_audit(spchain: Spchain) -> None:
    given = give(spchain)
    read(spchain, given["grant_id"], "0")
    result = spchain("audit", "--key", "paul.json", "--patient", MARIA.address.hex(), "--json")
    found = answer(result)
    assert found["entries"] == []
    assert all("not_permitted" in proxy["trouble"] for proxy in found["proxies"])
    assert "not_permitted" in result.stderr


def test_a_patient_nobody_asked_about_has_an_empty_audit(spchain: Spchain) -> None:
    assert "nobody has asked" in spchain("audit", "--key", "paul.json").stdout


def test_logs_that_cannot_be_read_do_not_say_that_nobody_has_asked(spchain: Spchain, node: CareNode) -> None:
    read(spchain, give(spchain)["grant_id"], "0")
    node.proxies.down = {identity.address for identity in INSTITUTIONS}
    shown = spchain("audit", "--key", "maria.json")
    assert "nobody has asked" not in shown.stdout
    assert "cannot be read to its end" in shown.stderr


# ------------------------------------------------------------------ names


def test_a_name_cannot_repaint_the_terminal(client: NodeClient, monkeypatch: pytest.MonkeyPatch) -> None:
    named = next(iter(client.institutions())).model_copy(update={"name": "St. Anna\x1b[2K\rMaria\u202e"})
    monkeypatch.setattr(NodeClient, "institutions", lambda _client: iter([named]))
    assert Names(client)(named.address) == f"St. Anna?[2K?Maria? ({named.address.hex()[:8]}…)"


# ------------------------------------------------------------------ times


def test_times_are_spans_or_dates() -> None:
    assert time_in("90m", 1_000, "t") == 1_000 + 90 * 60_000
    assert time_in("2w", 0, "t") == 14 * 86_400_000
    assert time_in("1970-01-02", 5, "t") == 86_400_000
    assert time_in("1970-01-01T01:00+01:00", 5, "t") == 0
    for wrong in ("", "30", "d", "-1d", "1e3d", "999999w", "1969-12-31", "tomorrow"):
        with pytest.raises(InvalidInput):
            time_in(wrong, 10**12, "t")


def test_times_for_people() -> None:
    assert day(0) == "1970-01-01 00:00"
    assert day(10**18) == "9999-12-31 23:59"
    assert ahead(3 * 86_400_000, 0) == "in 3 days"
    assert ahead(0, 3_600_000) == "1 hour ago"
    assert ahead(0, 0) == "in 0 minutes"
