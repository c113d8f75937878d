"""What is checked before a federation is written: addresses, names, and the run itself."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedalign.deployment.plan import Address, Plan, check_free, check_names, plan_sites
from fedalign.errors import UserError

QUICK = ("method.prior=none", "federation.rounds=2")


def plan(*overrides: str, names: tuple[str, ...] = ("a", "b", "c"), address: str = "fed.example.org:8443") -> Plan:
    return plan_sites([*QUICK, *overrides], names, Address.of(address))


@pytest.mark.parametrize(
    ("text", "host", "port", "loopback", "listens_on"),
    [
        ("localhost:8000", "localhost", 8000, True, "127.0.0.1"),
        ("127.0.0.1:1", "127.0.0.1", 1, True, "127.0.0.1"),
        ("[::1]:65535", "::1", 65535, True, "::1"),
        ("10.1.2.3:9", "10.1.2.3", 9, False, "0.0.0.0"),
        ("[2001:db8::7]:443", "2001:db8::7", 443, False, "::"),
        ("fed-1.example.org:8443", "fed-1.example.org", 8443, False, "0.0.0.0"),
    ],
)
def test_addresses_are_read_and_written_back(text: str, host: str, port: int, loopback: bool, listens_on: str) -> None:
    address = Address.of(text)
    assert (address.host, address.port, address.loopback, address.listens_on) == (host, port, loopback, listens_on)
    assert str(address) == text


@pytest.mark.parametrize(
    "text",
    [
        *("", "8000", "host", "host:", ":8000", "host:0", "host:65536", "host:80a", "host:²", "a b:1", "-a:1", "a-:1"),
        *("a..b:1", "::1:8000", "[::g]:1", "1.2.3.4.5:1", "1.2.3.256:1", "https://host:1", "under_score:1", "[host]:1"),
        *("a;reboot:1", "$(x):1", '"x":1', "a\nb:1", "ä:1", f"{'x' * 64}:1", f"{'x.' * 127}x:1"),
    ],
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="--server-address="):
        Address.of(text)


@given(st.text(max_size=30))
def test_any_text_is_an_address_or_a_clear_error(text: str) -> None:
    try:
        address = Address.of(text)
    except UserError as error:
        assert "as in" in str(error)
    else:
        # Nothing that a shell, TOML or YAML would act on comes through.
        assert set(str(address)) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-:[]%")


@pytest.mark.parametrize("name", ["", "A", "a b", "-a", "a-", "a/b", "..", "a.b", "ä", "a" * 41, "a\n", "$x", "a,b"])
def test_what_cannot_name_a_site_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="cannot name a site"):
        check_names(["fine", name])


def test_every_site_has_a_name_of_its_own() -> None:
    check_names(["north-1", "south", "9", "a" * 40])
    with pytest.raises(UserError, match="--sites: 'north' is there 2 times"):
        check_names(["north", "south", "north"])


def test_without_a_file_every_site_hosts_its_share() -> None:
    configs = [site.node_config for site in plan().sites]
    assert [(c["partition-id"], c["num-partitions"]) for c in configs] == [(0, 3), (1, 3), (2, 3)]
    assert all("data-path" not in c and c["state-path"] == "state/clients" for c in configs)


def test_with_a_file_every_site_reads_its_own_under_a_name_of_its_own() -> None:
    first = plan("data=survey_file", "data.path=/srv/survey.jsonl").sites[0].node_config
    assert first == {"data-path": "/srv/survey.jsonl", "client-prefix": "a-", "state-path": "state/clients"}


def test_sites_of_one_machine_open_different_ports() -> None:
    assert [site.runtime_port for site in plan(address="localhost:8000").sites] == [9094, 9095, 9096]
    assert {site.runtime_port for site in plan().sites} == {9094}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["federation.round=2"], "unknown key federation.round"),
        (["method=none"], "method=none: no such option"),
        (["federation.rounds=-1"], "federation.rounds"),
        (["seed=1,2"], "seed"),
        (["'"], "cannot read '"),
        (["resume=outputs/x"], r"\./run\.sh resume=DIR"),
        (["privacy=central", "privacy/metrics=open"], "privacy/metrics=open"),
    ],
)
def test_a_run_that_cannot_be_is_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        plan(*overrides)


def test_what_is_there_is_never_overwritten(tmp_path: Path) -> None:
    check_free(tmp_path / "new" / "deeper")
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for taken in (tmp_path, tmp_path / "file", tmp_path / "link"):
        with pytest.raises(UserError, match="exists; choose another"):
            check_free(taken)
    with pytest.raises(UserError, match="is no directory"):
        check_free(tmp_path / "file" / "below")
