"""fsspec's file systems for addresses, and what they need to be installed."""

from __future__ import annotations

from typing import Any

from wsi_meta.errors import SlideReadError, missing_libraries
from wsi_meta.files.address import Address

__all__ = ["file_system", "refuse_without_cloud"]

NEEDS = {"http": ("fsspec", "aiohttp"), "https": ("fsspec", "aiohttp"), "s3": ("fsspec", "s3fs")}
"""Packages that reading needs, by the kind of address."""


def refuse_without_cloud(address: Address) -> None:
    """Refuse an address whose packages are not installed; SlideReadError that says what to install."""
    if missing := missing_libraries("cloud", *NEEDS[address.scheme]):
        names = " and ".join(missing)
        raise SlideReadError(
            f"{address}: reading from an address needs {names}: pip install 'wsi-meta[cloud]', or download the slide"
        )


def file_system(address: Address) -> Any:
    """Return fsspec's file system for an address; s3 is set up as for every program that uses fsspec and botocore."""
    refuse_without_cloud(address)
    import fsspec

    if address.scheme == "s3":
        return fsspec.filesystem("s3", **_credentials(fsspec.config.conf.get("s3", {})))
    return fsspec.filesystem(address.scheme, encoded="%" in address.url)  # a signature is valid for its very letters


def _credentials(configured: dict[str, Any]) -> dict[str, Any]:
    """Return how to ask an object store: without a name where this machine has no credentials, as open data allows."""
    import botocore.session

    return {} if configured or botocore.session.Session().get_credentials() is not None else {"anon": True}
