# SPDX-License-Identifier: GPL-3.0-or-later
import random

import pytest
from multiaddr import Multiaddr

from ledger.errors import InvalidInput
from p2p.addresses import HEARSAY_ATTEMPTS, MAX_ADDRESSES, MAX_ENTRIES, Address, AddressBook, Standing, parse_address

ID = "12D3KooWPcfGdBCrdxX9nqGAdPAdkPMqfKEDjbZWGA4UFBJuY4rP"


def test_accepted_forms() -> None:
    assert parse_address(f"/ip4/10.1.2.3/tcp/4001/p2p/{ID}").peer_id == ID
    assert parse_address(f"/ip6/::1/tcp/1/p2p/{ID}").is_loopback
    assert parse_address(f"/ip4/127.9.9.9/tcp/1/p2p/{ID}").is_loopback
    assert not parse_address(f"/dns4/node.hospital.example/tcp/65535/p2p/{ID}").is_loopback


@pytest.mark.parametrize(
    "text",
    [
        "",
        "/",
        "/ip4/10.1.2.3/tcp/4001",
        f"/ip4/10.1.2.3/udp/4001/p2p/{ID}",
        f"/ip4/10.1.2.3/tcp/0/p2p/{ID}",
        f"/ip4/10.1.2.3/tcp/65536/p2p/{ID}",
        f"/ip4/10.1.2.3/tcp/-1/p2p/{ID}",
        f"/ip4/10.1.2.3/tcp/x/p2p/{ID}",
        f"/ip4/10.1.2/tcp/1/p2p/{ID}",
        f"/ip4/::1/tcp/1/p2p/{ID}",
        f"/ip4/0.0.0.0/tcp/1/p2p/{ID}",
        f"/ip4/224.0.0.1/tcp/1/p2p/{ID}",
        f"/ip4/10.1.2.3/tcp/1/p2p/{ID[:-1]}",
        "/ip4/10.1.2.3/tcp/1/p2p/QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N",
        "/ip4/10.1.2.3/tcp/1/p2p/0OIl",
        f"/ip4/10.1.2.3/tcp/1/p2p/{ID}/p2p-circuit",
        f"/ip4/10.1.2.3/tcp/1/ws/p2p/{ID}",
        f"/unix/tmp/tcp/1/p2p/{ID}",
        f"/dns4/{'a' * 300}/tcp/1/p2p/{ID}",
        f"/dns4/häuser.example/tcp/1/p2p/{ID}",
    ],
)
def test_every_other_form_is_refused_with_the_right_one_named(text: str) -> None:
    with pytest.raises(InvalidInput, match="/tcp/<port>/p2p/<id>"):
        parse_address(text)


def address(peer: str, port: int = 1) -> Address:
    return Address(peer, f"/ip4/10.0.0.1/tcp/{port}/p2p/{peer}", Multiaddr("/ip4/10.0.0.1/tcp/1"), is_loopback=False)


def book() -> AddressBook:
    return AddressBook("m", 0.5, 30.0, random.Random(7))


def test_our_own_address_is_not_learnt() -> None:
    assert not book().learn(address("m"), Standing.HEARSAY, 0.0)


def test_of_two_strangers_the_smaller_identity_dials_first() -> None:
    ours = book()
    ours.learn(address("z"), Standing.HEARSAY, 0.0)
    ours.learn(address("a"), Standing.HEARSAY, 0.0)
    later, now = ours.get("a"), ours.get("z")
    assert now is not None
    assert later is not None
    assert now.next_dial_s == 0.0
    assert later.next_dial_s > 1.0


def test_pauses_double_with_jitter_up_to_the_longest() -> None:
    ours = book()
    ours.learn(address("z"), Standing.BOOTSTRAP, 0.0)
    entry = ours.get("z")
    assert entry is not None
    for expected in (0.5, 1, 2, 4, 8, 16, 30, 30, 30):
        ours.failed(entry, 0.0)
        assert expected * 0.75 <= entry.next_dial_s <= expected * 1.25


def test_hearsay_is_forgotten_after_a_few_failures_and_others_never() -> None:
    ours = book()
    for peer, standing in (("x", Standing.HEARSAY), ("y", Standing.MET), ("z", Standing.BOOTSTRAP)):
        ours.learn(address(peer), standing, 0.0)
        entry = ours.get(peer)
        assert entry is not None
        for _ in range(HEARSAY_ATTEMPTS + 100):
            ours.failed(entry, 0.0)
    assert [entry.peer_id for entry in ours.all()] == ["y", "z"]


def test_hearsay_does_not_push_out_addresses_that_are_known() -> None:
    ours = book()
    ours.learn(address("z", 1), Standing.MET, 0.0)
    for port in range(2, 100):
        ours.learn(address("z", port), Standing.HEARSAY, 0.0)
    entry = ours.get("z")
    assert entry is not None
    assert len(entry.addresses) == MAX_ADDRESSES
    assert entry.addresses[0] == address("z", 1)


def test_the_book_is_bounded_and_keeps_whom_it_met() -> None:
    ours = book()
    ours.learn(address("met"), Standing.MET, 0.0)
    for number in range(MAX_ENTRIES + 100):
        ours.learn(address(f"s{number}"), Standing.HEARSAY, 0.0)
    assert len(ours.all()) == MAX_ENTRIES
    assert ours.get("met") is not None
    assert ours.learn(address("operator"), Standing.BOOTSTRAP, 0.0), "the operator's word makes room"
    assert len(ours.all()) == MAX_ENTRIES


def test_peers_that_were_met_and_are_gone_do_not_keep_new_ones_out_for_ever() -> None:
    ours = book()
    for number in range(MAX_ENTRIES):
        ours.learn(address(f"s{number}"), Standing.MET, 0.0)
    assert not ours.learn(address("new"), Standing.MET, 0.0), "all are as good as it is"
    gone = ours.get("s7")
    assert gone is not None
    ours.failed(gone, 0.0)
    assert not ours.learn(address("heard of"), Standing.HEARSAY, 0.0), "hearsay makes nobody go who was met"
    assert ours.learn(address("new"), Standing.MET, 0.0)
    assert ours.get("s7") is None
    assert len(ours.all()) == MAX_ENTRIES


def test_the_address_that_worked_comes_first() -> None:
    ours = book()
    for port in (1, 2, 3):
        ours.learn(address("z", port), Standing.BOOTSTRAP, 0.0)
    entry = ours.get("z")
    assert entry is not None
    ours.worked(entry, address("z", 1))
    assert entry.addresses[0] == address("z", 1)
