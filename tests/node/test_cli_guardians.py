# SPDX-License-Identifier: GPL-3.0-or-later
"""Changed keys, guardians and delegates on the command line: nothing of the past is lost, and nobody gets more than was given."""

from pathlib import Path
from typing import Any

import pytest

from node.actions import Actor
from node.client import NodeClient
from node.guardian_actions import appoint
from node.identity import Identity
from node.key_actions import change_keys, pending_path, stage
from node.keystore import Cost, read_public, read_ring, write_key
from tests.node.care_cli import BUNDLE, EVA, MARIA, PASSPHRASE, Spchain, answer, client, give, node, refused, spchain
from tests.node.care_kit import INSTITUTIONS, CareNode

__all__ = ["client", "node", "spchain"]

MARIA_HEX = MARIA.address.hex()


def put(spchain: Spchain, content: bytes, code: int = 0) -> None:
    Path("visit.json").write_bytes(content)
    result = spchain("record", "put", "visit.json", "--patient", MARIA_HEX, "--key", "h1.json")
    assert result.exit_code == code, result.output


def rotate(spchain: Spchain, *arguments: str) -> Any:  # noqa: ANN401
    return answer(spchain("key", "rotate", "maria.json", *arguments, "--json"))


# ------------------------------------------------------------------ new keys


def test_after_a_change_of_keys_old_and_new_records_are_read_and_grants_go_on(spchain: Spchain) -> None:
    everything = give(spchain)
    one = give(spchain, "--record", "0", grantee="Hospital 3")
    rotated = rotate(spchain)
    assert (rotated["identifier"], rotated["generation"]) == (MARIA_HEX, 1)
    assert rotated["address"] != MARIA_HEX
    (renewed,) = rotated["grants"]
    put(spchain, BUNDLE + b"\n\n")
    for number, content in enumerate((BUNDLE, BUNDLE + b"\n", BUNDLE + b"\n\n")):
        assert spchain("record", "get", str(number), "--patient", "maria.json").stdout_bytes == content
    # The old grants serve the old records, the renewed one the new ones.
    for grant, sequence in ((everything["grant_id"], "1"), (renewed, "2")):
        assert spchain("read", grant, sequence, "--key", "h2.json").exit_code == 0
    assert spchain("read", one["grant_id"], "0", "--key", "h3.json").exit_code == 0
    refused(spchain("read", everything["grant_id"], "2", "--key", "h2.json"), 3, "out_of_scope")
    # One wish now takes a grant for each generation.
    both = give(spchain, grantee="Hospital 4")
    assert [grant["generation"] for grant in both] == [0, 1]
    named = give(spchain, "--record", "0", "--record", "2", grantee="Hospital 4")
    assert [(grant["generation"], grant["records"]) for grant in named] == [(0, [0]), (1, [2])]


def test_a_changed_key_revokes_audits_labels_and_changes_again(spchain: Spchain) -> None:
    given = give(spchain)
    assert spchain("read", given["grant_id"], "0", "--key", "h2.json").exit_code == 0
    Path("old.json").write_bytes(Path("maria.json").read_bytes())
    rotate(spchain)
    rotate(spchain)
    assert read_public(Path("maria.json")).generation == 2
    ask = ("label", "ask", "0", "--patient", "maria.json", "--key", "h1.json", "--status", "amended", "--label", "late")
    answer(spchain(*ask, "-o", "request", "--json"))
    assert spchain("label", "permit", "request", "--key", "maria.json", "-o", "permission", "--yes").exit_code == 0
    assert spchain("label", "apply", "permission", "--key", "h1.json").exit_code == 0
    assert len(answer(spchain("audit", "--key", "maria.json", "--json"))["entries"]) == 2
    refused(spchain("revoke", given["grant_id"], "--key", "old.json"), 3, "insufficient_balance")
    assert spchain("revoke", given["grant_id"], "--key", "maria.json").exit_code == 0
    found = answer(spchain("audit", "--key", "old.json", "--json"))
    assert all("not_permitted" in proxy["trouble"] for proxy in found["proxies"])


def test_a_grantee_who_has_changed_keys_still_reads(spchain: Spchain) -> None:
    given = give(spchain, grantee="paul.json")
    answer(spchain("key", "rotate", "paul.json", "--json"))
    assert spchain("read", given["grant_id"], "0", "--key", "paul.json").stdout_bytes == BUNDLE


def test_an_interrupted_change_of_keys_goes_on(spchain: Spchain, client: NodeClient) -> None:
    path = Path("maria.json")
    ring = read_ring(path, PASSPHRASE)
    # Interrupted before the change was sent: the keys that wait are used.
    waiting = stage(path, ring, PASSPHRASE)
    assert stage(path, ring, PASSPHRASE).secret == waiting.secret
    assert rotate(spchain)["address"] == waiting.newest.address.hex()
    assert not pending_path(path).exists()
    # Interrupted after it was committed.
    ring = read_ring(path, PASSPHRASE)
    waiting = stage(path, ring, PASSPHRASE)
    change_keys(Actor(client, ring), waiting.newest)
    rotated = rotate(spchain)
    assert (rotated["address"], rotated["height"]) == (waiting.newest.address.hex(), None)
    assert read_ring(path, PASSPHRASE).secret == waiting.secret


def test_a_file_in_the_way_of_new_keys_is_not_touched(spchain: Spchain) -> None:
    write_key(Path("maria.json.next"), EVA, PASSPHRASE, Cost.LIGHT)
    before = Path("maria.json.next").read_bytes()
    refused(spchain("key", "rotate", "maria.json"), 3, "not the next generation")
    assert Path("maria.json.next").read_bytes() == before


def test_an_institution_cannot_rotate_and_nothing_is_written(spchain: Spchain) -> None:
    refused(spchain("key", "rotate", "h1.json"), 5, INSTITUTIONS[0].address.hex())
    assert not Path("h1.json.next").exists()


def test_what_could_not_be_renewed_is_named_and_renewed_later(spchain: Spchain, node: CareNode) -> None:
    given = give(spchain)
    down = {bytes.fromhex(proxy["address"]) for proxy in given["proxies"][:1]}
    node.proxies.down = down
    result = spchain("key", "rotate", "maria.json", "--json")
    rotated = answer(result)
    assert len(rotated["fragments_files"]) == 1
    assert "spchain grant deliver" in result.stderr
    node.proxies.down = set()
    assert answer(spchain("grant", "deliver", rotated["fragments_files"][0], "--json"))["is_usable"]
    assert rotate(spchain, "--only-renew")["grants"] == []


# ------------------------------------------------------------------ guardians


def appoint_three(spchain: Spchain) -> None:
    appointed = ("guardian", "appoint", "paul.json", "eva.json", "Hospital 5", "--needed", "2", "--key", "maria.json")
    assert answer(spchain(*appointed, "--json"))["needed"] == 2


def ask(spchain: Spchain) -> None:
    asking = ("guardian", "recover", "new.json", "--patient", MARIA_HEX, "--request", "request", "--light", "--json")
    asked = answer(spchain(*asking))
    assert asked["new_key"] == read_public(Path("new.json")).public_key.hex()


def approve(spchain: Spchain, guardian: str, out: str) -> None:
    approved = answer(spchain("guardian", "approve", "request", "--key", guardian, "-o", out, "--yes", "--json"))
    assert approved["new_key"] == read_public(Path("new.json")).public_key.hex()


RECOVER = ("guardian", "recover", "new.json", "--patient", MARIA_HEX, "--payer", "h1.json")


def test_two_of_three_guardians_give_a_patient_account_and_records_back(spchain: Spchain) -> None:
    given = give(spchain)
    appoint_three(spchain)
    lost = Path("maria.json").rename("lost.json")
    ask(spchain)
    approve(spchain, "paul.json", "paul.approval")
    refused(spchain(*RECOVER, "paul.approval"), 3, "1 guardians have approved, 2 are needed", EVA.address.hex())
    approve(spchain, "h5.json", "h5.approval")
    done = answer(spchain(*RECOVER, "paul.approval", "h5.approval", "--json"))
    assert done["generations"] == 2
    assert spchain("record", "get", "0", "--patient", "new.json").stdout_bytes == BUNDLE
    assert spchain("patient", "authorise", "h2.json", "--key", "new.json").exit_code == 0
    refused(spchain("patient", "authorise", "h3.json", "--key", str(lost)), 3, "")
    renewed = answer(spchain("key", "rotate", "new.json", "--only-renew", "--json"))
    assert len(renewed["grants"]) == 1
    assert renewed["guardians_renewed"]
    assert spchain("read", given["grant_id"], "0", "--key", "h2.json").exit_code == 0
    # The guardians' approvals have served once.
    refused(spchain(*RECOVER, "paul.approval", "h5.approval"), 3, "another keyblock")


def test_a_guardian_who_has_changed_keys_still_helps(spchain: Spchain) -> None:
    appoint_three(spchain)
    answer(spchain("key", "rotate", "paul.json", "--json"))
    assert answer(spchain("guardian", "show", MARIA_HEX, "--key", "paul.json", "--json"))["share_is_right"]
    ask(spchain)
    approve(spchain, "paul.json", "paul.approval")
    approve(spchain, "eva.json", "eva.approval")
    assert answer(spchain(*RECOVER, "eva.approval", "paul.approval", "--json"))["generations"] == 2


def test_a_recovery_that_was_interrupted_after_its_commit_goes_on(
    spchain: Spchain, monkeypatch: pytest.MonkeyPatch
) -> None:
    appoint_three(spchain)
    ask(spchain)
    approve(spchain, "paul.json", "paul.approval")
    approve(spchain, "eva.json", "eva.approval")

    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("node.key_actions.adopt", crash)
        assert spchain(*RECOVER, "paul.approval", "eva.approval").exit_code == 130
    assert len(read_ring(Path("new.json"), PASSPHRASE).generations) == 1
    done = answer(spchain(*RECOVER, "paul.approval", "eva.approval", "--json"))
    assert (done["generations"], done["height"]) == (2, None)
    assert spchain("record", "get", "0", "--patient", "new.json").stdout_bytes == BUNDLE


def test_nobody_else_approves_and_the_same_approval_twice_is_one(spchain: Spchain) -> None:
    appoint_three(spchain)
    ask(spchain)
    stranger = ("guardian", "approve", "request", "--key", "h2.json", "-o", "x", "--yes")
    refused(spchain(*stranger), 3, "no guardian")
    refused(spchain("guardian", "approve", "request", "--key", "paul.json", "-o", "x"), 3, "--yes")
    assert not Path("x").exists()
    approve(spchain, "paul.json", "one")
    approve(spchain, "paul.json", "two")
    refused(spchain(*RECOVER, "one", "two"), 3, "2 are needed")


def test_an_approval_for_other_keys_or_a_changed_one_is_refused(spchain: Spchain) -> None:
    appoint_three(spchain)
    ask(spchain)
    approve(spchain, "paul.json", "paul.approval")
    raw = bytearray(Path("paul.approval").read_bytes())
    raw[70] ^= 1
    Path("changed").write_bytes(raw)
    assert spchain(*RECOVER, "changed", "changed").exit_code == 3
    write_key(Path("other.json"), Identity(b"\x77" * 32), PASSPHRASE, Cost.LIGHT)
    elsewhere = ("guardian", "recover", "other.json", "paul.approval", "--patient", MARIA_HEX, "--payer", "h1.json")
    refused(spchain(*elsewhere), 3, "another keyblock")


def test_a_request_from_before_another_change_is_void(spchain: Spchain) -> None:
    appoint_three(spchain)
    ask(spchain)
    rotate(spchain)
    refused(spchain("guardian", "approve", "request", "--key", "paul.json", "-o", "x", "--yes"), 3, "ask anew")


def test_a_node_that_gives_another_backup_is_caught(spchain: Spchain, client: NodeClient, node: CareNode) -> None:
    appoint_three(spchain)
    blob = client.consent.guardians(MARIA.address).backup
    genuine = node.blobs.get(blob)
    node.blobs.delete(blob)
    assert spchain("guardian", "show", MARIA_HEX, "--key", "paul.json").exit_code == 5
    node.blobs.put(blob, genuine)
    assert spchain("guardian", "show", MARIA_HEX, "--key", "paul.json").exit_code == 0
    refused(spchain("guardian", "show", MARIA_HEX, "--key", "h2.json"), 3, "no share")


def test_wrong_appointments_say_what_is_wrong(spchain: Spchain, client: NodeClient) -> None:
    refused(spchain("guardian", "show", MARIA_HEX), 5, "appointed no guardians")
    refused(spchain("guardian", "appoint", "paul.json", "--key", "maria.json"), 3, "2 of 1")
    refused(spchain("guardian", "appoint", "paul.json", "paul.json", "--key", "maria.json"), 3, "once")
    refused(spchain("guardian", "appoint", "paul.json", "ab" * 20, "--key", "maria.json"), 5, "ab" * 20)
    refused(spchain("guardian", "recover", "new.json", "--patient", MARIA_HEX, "--light"), 3, "--request")
    refused(spchain("guardian", "recover", "none.json", "x", "--patient", MARIA_HEX), 3, "not there")
    refused(spchain("guardian", "recover", "new.json", "x", "--patient", MARIA_HEX), 3, "--payer")
    assert appoint(Actor(client, MARIA), [EVA.address, INSTITUTIONS[1].address], 2).height > 0


# ------------------------------------------------------------------ delegates


def delegate(spchain: Spchain, *arguments: str) -> None:
    given = answer(
        spchain("delegate", "give", "eva.json", "--key", "maria.json", "--until", "1h", *arguments, "--json")
    )
    assert given["delegate"] == EVA.address.hex()


def test_a_delegate_reads_grants_revokes_and_audits_within_its_powers(spchain: Spchain) -> None:
    delegate(spchain, "--power", "revoke", "--power", "grant", "--power", "review", "--handover", "keys")
    assert answer(spchain("delegate", "list", "maria.json", "--json"))[0]["powers"] == ["grant", "review", "revoke"]
    read = ("delegate", "read", "1", "--patient", MARIA_HEX, "--handover", "keys", "--key", "eva.json")
    assert spchain(*read).stdout_bytes == BUNDLE + b"\n"
    given = give(spchain, "--patient", MARIA_HEX, "--handover", "keys", key="eva.json")
    assert spchain("read", given["grant_id"], "0", "--key", "h2.json").stdout_bytes == BUNDLE
    found = answer(spchain("audit", "--key", "eva.json", "--patient", MARIA_HEX, "--json"))
    assert len(found["entries"]) == 2
    assert spchain("revoke", given["grant_id"], "--key", "eva.json").exit_code == 0
    refused(spchain("patient", "authorise", "h2.json", "--key", "eva.json", "--patient", MARIA_HEX), 3, "not_permitted")


def test_a_delegate_authorises_and_permits_labels_when_it_may(spchain: Spchain) -> None:
    delegate(spchain, "--power", "authorise", "--power", "label", "--handover", "keys", "--trapdoor")
    authorise = ("patient", "authorise", "h2.json", "--key", "eva.json", "--patient", MARIA_HEX, "--json")
    assert answer(spchain(*authorise))["patient"] == MARIA_HEX
    asking = ("label", "ask", "0", "--patient", MARIA_HEX, "--key", "h1.json", "--status", "amended", "--label", "late")
    answer(spchain(*asking, "-o", "request", "--json"))
    permit = ("label", "permit", "request", "--key", "eva.json", "-o", "permission", "--yes", "--handover", "keys")
    assert spchain(*permit).exit_code == 0
    assert spchain("label", "apply", "permission", "--key", "h1.json").exit_code == 0


def test_without_the_trapdoor_a_delegate_permits_no_label(spchain: Spchain) -> None:
    delegate(spchain, "--power", "label", "--handover", "keys")
    asking = ("label", "ask", "0", "--patient", MARIA_HEX, "--key", "h1.json", "--status", "amended", "--label", "late")
    answer(spchain(*asking, "-o", "request", "--json"))
    permit = ("label", "permit", "request", "--key", "eva.json", "-o", "permission", "--yes", "--handover", "keys")
    refused(spchain(*permit), 3, "--trapdoor")


def test_what_was_taken_back_is_over_and_keys_for_one_serve_no_other(spchain: Spchain) -> None:
    delegate(spchain, "--power", "grant", "--handover", "keys")
    stolen = ("delegate", "read", "0", "--patient", MARIA_HEX, "--handover", "keys", "--key", "paul.json")
    assert spchain(*stolen).exit_code == 3
    assert spchain("delegate", "withdraw", "eva.json", "--key", "maria.json").exit_code == 0
    late = ("grant", "give", "Hospital 2", "--key", "eva.json", "--patient", MARIA_HEX, "--handover", "keys")
    refused(spchain(*late, "--until", "1h"), 3, "not_permitted")
    assert "taken back" in spchain("delegate", "list", "maria.json").stdout


def test_after_a_change_of_keys_a_delegate_needs_new_ones_and_then_reads_all(spchain: Spchain) -> None:
    delegate(spchain, "--power", "grant", "--handover", "keys")
    result = spchain("key", "rotate", "maria.json", "--json")
    assert answer(result)["delegates"] == [EVA.address.hex()]
    assert "--handover" in result.stderr
    put(spchain, BUNDLE + b" ")
    read = ("delegate", "read", "2", "--patient", MARIA_HEX, "--key", "eva.json", "--handover")
    refused(spchain(*read, "keys"), 3, "present key")
    delegate(spchain, "--power", "grant", "--handover", "new-keys")
    assert spchain(*read, "new-keys").stdout_bytes == BUNDLE + b" "
    assert len(give(spchain, "--patient", MARIA_HEX, "--handover", "new-keys", key="eva.json")) == 2


def test_a_change_of_keys_renews_what_a_delegate_gave_while_it_may_grant_and_not_after(spchain: Spchain) -> None:
    """Who is shut out by new keys must not read new records by a grant that it gave itself before."""
    delegate(spchain, "--power", "grant", "--handover", "keys")
    as_eva = ("--patient", MARIA_HEX, "--handover", "keys")
    to_itself = give(spchain, *as_eva, grantee="eva.json", key="eva.json")["grant_id"]
    until = ("--until", "2126-01-01")
    for key, arguments in (("eva.json", as_eva), ("maria.json", ())):
        both = ("grant", "give", "Hospital 2", "--key", key, *until, *arguments, "--json")
        assert answer(spchain(*both))[0]["is_usable"]
    assert spchain("delegate", "withdraw", "eva.json", "--key", "maria.json").exit_code == 0
    result = spchain("key", "rotate", "maria.json")
    assert result.exit_code == 0
    assert "Hospital 2" in result.stdout, "who goes on to read is shown"
    assert f"grant {to_itself} has none for the new keys: {EVA.address.hex()} gave it" in result.stderr
    put(spchain, BUNDLE + b" ")
    lasting = answer(spchain("grant", "list", "maria.json", "--json"))
    renewed = [grant for grant in lasting if grant["generation"] == 1]
    assert [grant["grantee"] for grant in renewed] == [INSTITUTIONS[1].address.hex()], "the patient's own goes on"
    refused(spchain("read", to_itself, "2", "--key", "eva.json"), 3, "out_of_scope")


def test_a_change_of_keys_renews_what_a_delegate_in_power_gave(spchain: Spchain) -> None:
    delegate(spchain, "--power", "grant", "--handover", "keys")
    give(spchain, "--patient", MARIA_HEX, "--handover", "keys", key="eva.json")
    assert len(rotate(spchain)["grants"]) == 1


def test_wrong_delegations_say_what_is_wrong(spchain: Spchain) -> None:
    wrong = ("delegate", "give", "eva.json", "--key", "maria.json", "--until", "1h", "--power")
    refused(spchain(*wrong, "everything"), 3, "everything")
    refused(spchain(*wrong, "grant", "--trapdoor"), 3, "--handover")
    refused(
        spchain("delegate", "give", "maria.json", "--key", "maria.json", "--until", "1h", "--power", "grant"), 3, ""
    )
    assert "nobody may act" in spchain("delegate", "list", "maria.json").stdout
