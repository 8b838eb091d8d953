"""Addresses on the command line."""

from __future__ import annotations

import pytest

from rrq_fastwire.cli.address import join_address, split_address

from .in_process import run_text

for extra in ("click", "rich"):
    pytest.importorskip(extra, reason="the command line is an extra")


@pytest.mark.parametrize(
    ("text", "host"),
    [
        ("localhost:80", "localhost"),
        ("a.example.:80", "a.example."),
        ("bücher.example:80", "bücher.example"),
        ("[fe80::1%eth0]:80", "fe80::1%eth0"),
        (f"{'a' * 63}:80", "a" * 63),
    ],
)
def test_a_valid_address_is_split_and_joined_again(text, host):
    assert split_address(text) == (host, 80)
    assert join_address(host, 80) == text


@pytest.mark.parametrize("host", ["..bad..", "a" * 70, "a..b", "\udcff"])
@pytest.mark.parametrize(
    "command",
    [["ping"], ["call"], ["load"], ["check"], ["tap", "--listen", "127.0.0.1:9000", "--to"]],
    ids=lambda command: command[0],
)
def test_a_host_that_can_have_no_address_gets_one_sentence_and_status_2(command, host):
    status, out, err = run_text(*command, f"{host}:80")
    assert (status, out) == (2, "")
    assert f"{host!r} is not a valid host name" in err
    assert err.startswith("rrq-fastwire: ")
    assert err.count("\n") == 1


def test_only_commands_that_can_start_a_runner_propose_it():
    expected = "expected HOST:PORT with a port from 1 to 65535"
    assert f"{expected}, or --runner, got 'x'" in run_text("call", "x", "echo")[2]
    assert f"{expected}, got 'x'" in run_text("tap", "--listen", "127.0.0.1:1", "--to", "x")[2]
