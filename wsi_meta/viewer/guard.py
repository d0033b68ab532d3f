"""Who may ask the server: only pages that it sent itself, under its own names, with the token where there is one."""

from __future__ import annotations

import hmac
import ipaddress
import secrets
import socket
from dataclasses import dataclass
from urllib.parse import urlsplit

__all__ = ["LOOPBACK", "Gate", "make_gate"]

LOOPBACK = "127.0.0.1"
ANYWHERE = ("0.0.0.0", "::")
"""Addresses that mean all of this machine."""
TOKEN_BYTES = 24
OWN_STYLE = "'sha256-9xTiqzfwFaL2SGb1rmr8gysEwVVjIvqWAgmZgqFqpEE='"
"""The one style that OpenSeadragon 6.1.1 puts into a page itself."""
HEADERS = {
    "Content-Security-Policy": (
        f"default-src 'none'; script-src 'self'; style-src 'self' {OWN_STYLE}; img-src 'self' data: blob:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}
"""Headers of every answer: nothing is loaded from elsewhere, and nobody else may load or frame it."""


@dataclass(frozen=True)
class Gate:
    """What a request must show."""

    host: str
    """Address that the server listens at."""
    port: int
    token: str | None
    """Text that only the link holds; None where only this machine can ask."""
    names: frozenset[str]
    """Names of this server in a Host header, in lower case."""

    @property
    def link(self) -> str:
        """Address to open in a browser."""
        host = self.host if self.host not in ANYWHERE else socket.gethostname()
        host = f"[{host}]" if ":" in host else host
        return f"http://{host}:{self.port}/" + (f"?token={self.token}" if self.token else "")

    @property
    def cookie(self) -> str:
        """Name of the cookie that holds the token; browsers share cookies between the ports of a host."""
        return f"wsi_meta_view_{self.port}"

    def knows_host(self, host: str) -> bool:
        """Tell whether a Host header names this server.

        Another site's name that leads to this address (DNS rebinding) does not.
        """
        try:
            parts = urlsplit(f"//{host}")
            name, port = parts.hostname or "", parts.port
        except ValueError:
            return False
        if port != self.port or parts.netloc != host or "@" in host:
            return False
        return name.lower() in self.names or (self.host in ANYWHERE and _is_address(name))

    def knows_origin(self, origin: str | None, host: str) -> bool:
        """Tell whether a request comes from a page of this server, or from no page; `host` is its Host header."""
        return origin is None or origin.lower() == f"http://{host}".lower()

    def knows_token(self, token: str | None) -> bool:
        """Tell whether a token is the right one; where there is none, any is."""
        return self.token is None or hmac.compare_digest((token or "").encode(), self.token.encode())


def make_gate(host: str | None, port: int) -> Gate:
    """Return the gate of a server; without `host` only this machine can ask, with it a token is made."""
    if host is None or _is_loopback(host):
        names = {"localhost", "127.0.0.1", "::1", (host or LOOPBACK).lower()}
    else:
        names = {host.lower(), socket.gethostname().lower(), socket.getfqdn().lower()}
    token = None if host is None else secrets.token_urlsafe(TOKEN_BYTES)
    return Gate(host or LOOPBACK, port, token, frozenset(names))


def _is_loopback(host: str) -> bool:
    return host.lower() == "localhost" or (_is_address(host) and ipaddress.ip_address(host).is_loopback)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
