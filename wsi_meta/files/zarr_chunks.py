"""Chunks of a zarr array: what was cut is told, and what does not come now is told apart from what is not there."""

from __future__ import annotations

import errno
from dataclasses import replace
from typing import Any

from wsi_meta.words import first_line

__all__ = ["CutError", "NotNowError", "may_come_later", "probed", "told_of"]

BLOSC_HEAD_BYTES = 16
"""Blosc's header, which ends with the length of all."""
LATER = (408, 425, 429)
"""What a server answers that is busy, besides 500 and more."""
OF_ITS_CONTENT = (ValueError, ArithmeticError, LookupError, TypeError, AttributeError)
"""What is raised for what a store holds: the same every time."""


class CutError(ValueError):
    """A chunk has fewer bytes than it should have."""


class NotNowError(OSError):
    """A chunk did not come; it may when it is asked for again."""


def may_come_later(error: BaseException, *, far: bool) -> bool:
    """Tell whether what could not be read of a store may come when it is asked for again: a network or a disk failed.

    Parameters
    ----------
    far : whether the store is at an address, where what may not be read counts as not there: some answer so for both
    """
    status = getattr(error, "status", None)
    if isinstance(status, int):
        return status in LATER or status >= 500
    if isinstance(error, FileNotFoundError):  # fsspec raises it as well where it could not ask for a length
        cause = error.__cause__
        asked = cause is not None and not type(cause).__module__.startswith("botocore")
        return cause is not None and asked and may_come_later(cause, far=far)
    if isinstance(error, OSError):
        there = not isinstance(error, IsADirectoryError | NotADirectoryError) and error.errno != errno.EINVAL
        return there and not (far and isinstance(error, PermissionError))
    return far and not isinstance(error, OF_ITS_CONTENT)


def told_of(error: BaseException, *, far: bool) -> str:
    """Return what another library's error says; its kind alone where it may name an address with a secret in it."""
    return type(error).__name__ if far and not isinstance(error, CutError | NotNowError) else first_line(error)


def probed(array: Any, fill: int, *, far: bool) -> Any:
    """Return an array with another fill value, of whose chunks those that were cut, or do not come now, are told.

    Blosc's decoder would read beyond the end of a chunk that was cut.
    """
    from zarr import Array, AsyncArray
    from zarr.storage import StorePath, WrapperStore

    class Whole(WrapperStore[Any]):
        """A store of which a part that is shorter than it should be is an error, and so is one that did not come."""

        async def get(self, key: str, prototype: Any, byte_range: Any = None) -> Any:
            try:
                stored = await super().get(key, prototype, byte_range)
            except Exception as error:  # each network has errors of its own
                if may_come_later(error, far=far):
                    raise NotNowError(told_of(error, far=far)) from None
                if isinstance(error, FileNotFoundError):
                    return None
                raise
            if stored is not None:
                _refuse_cut(stored, byte_range, blosc=blosc)
            return stored

    described = array.metadata.to_dict()
    last = described["compressor"] if "compressor" in described else described["codecs"][-1]
    blosc = "blosc" in str((last or {}).get("id", (last or {}).get("name")))
    place = StorePath(Whole(_outspoken(array.store_path.store)), array.store_path.path)
    return Array(AsyncArray(replace(array.metadata, fill_value=array.dtype.type(fill)), place))


def _outspoken(store: Any) -> Any:
    """Return a store that says why nothing came, where zarr takes each such error for a chunk that is not there."""
    from zarr.storage import FsspecStore

    if not isinstance(store, FsspecStore):
        return store
    return FsspecStore(store.fs, read_only=True, path=store.path, allowed_exceptions=())


def _refuse_cut(stored: Any, byte_range: Any, *, blosc: bool) -> None:
    """Refuse a chunk, or a part of a shard, that has fewer bytes than it should have; CutError."""
    expected = len(stored)
    if byte_range is not None:
        expected = getattr(byte_range, "end", expected) - getattr(byte_range, "start", 0)
    elif blosc:
        head = stored.as_numpy_array()[:BLOSC_HEAD_BYTES].tobytes()
        expected = int.from_bytes(head[12:16], "little") if len(head) == BLOSC_HEAD_BYTES else BLOSC_HEAD_BYTES
    if len(stored) < expected:
        raise CutError(f"a chunk of {len(stored):,} bytes; expected {expected:,}")
