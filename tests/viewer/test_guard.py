"""Names under which the server answers."""

from __future__ import annotations

import socket

import pytest

from wsi_meta.viewer.guard import make_gate

HERE = socket.gethostname()


@pytest.mark.parametrize(
    ("host", "known", "unknown"),
    [
        (None, ["127.0.0.1:80", "localhost:80", "LOCALHOST:80", "[::1]:80"], ["10.0.0.1:80", "evil:80", "localhost.evil:80"]),
        (
            "0.0.0.0",
            ["10.0.0.1:80", "[fe80::1]:80", f"{socket.gethostname()}:80"],
            ["evil:80", "10.0.0.1:81", "10.0.0.1.evil:80"],
        ),
        ("10.0.0.1", ["10.0.0.1:80"], ["10.0.0.2:80", "127.0.0.1:80"]),
    ],
)
def test_only_its_own_names(host: str | None, known: list[str], unknown: list[str]) -> None:
    gate = make_gate(host, 80)
    assert [name for name in known if not gate.knows_host(name)] == []
    assert [name for name in [*unknown, "", ":80", "[::1", "a:b:c", "127.0.0.1:99999999"] if gate.knows_host(name)] == []


def test_a_link_leads_to_an_address_that_exists() -> None:
    assert make_gate(None, 80).link == "http://127.0.0.1:80/"
    anywhere = make_gate("0.0.0.0", 80)
    assert anywhere.link == f"http://{socket.gethostname()}:80/?token={anywhere.token}"
    assert make_gate("fd00::1", 80).link.startswith("http://[fd00::1]:80/?token=")
