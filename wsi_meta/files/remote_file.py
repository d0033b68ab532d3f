"""A file at an address, read in parts: each part is asked for by its range of bytes, and checked to be of the same file."""

from __future__ import annotations

import asyncio
import os
import re
import threading
import time
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from wsi_meta.errors import SlideReadError
from wsi_meta.files.address import Address
from wsi_meta.files.file_systems import file_system
from wsi_meta.files.same_file import REPLACED, SlideReplacedError

__all__ = ["RemoteFile"]

HEAD_BYTES = 1 << 14
"""The first part that is asked for: it tells how long the file is."""
TRIES, WAIT_S = 3, 0.3
"""How often a part is asked for, and how long it is waited before the second time; then twice as long."""
HOPELESS = 5
"""After so many parts in a row that did not come, each further one is asked for once only; none while the server is silent."""
ANSWER_S = 30.0
"""So long an answer may take to begin, and then to go on."""
AT_ONCE = 8
"""Parts of one file that are asked for at the same time."""
GAP_BYTES = 4096
"""Parts with no more than this between them are asked for as one."""
MOST_PART_BYTES = 8 << 20
"""Parts are joined up to this."""
HELD_BYTES = 64 << 20
"""Parts that came, and were not read yet."""
RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")

Mark = tuple[int, str, str]
"""What tells a file from another one at its address: bytes, ETag, time of the last change; empty where not told."""


class _NoAnswerError(OSError):
    """No part came, but it may come when it is asked for again, in so many seconds."""

    def __init__(self, told: str, wait_s: float = 0.0) -> None:
        super().__init__(told)
        self.wait_s = wait_s


class _RefusedError(OSError):
    """The server will not give it, however often it is asked."""


@dataclass(frozen=True)
class _Part:
    content: bytes
    mark: Mark


Ask = Callable[[int, int], Awaitable[_Part]]
"""Asks for so many bytes from an offset on."""


@dataclass(frozen=True)
class _Expected:
    """A part that was asked for ahead."""

    offset: int
    answer: Future[bytes]


class RemoteFile:
    """A file at an address. Threads may share it.

    Parameters
    ----------
    address : where it is
    answer_s : so long an answer may take to begin, and then to go on

    Attributes
    ----------
    fetched : bytes that came so far

    Raises
    ------
    SlideReadError
        when it is not there, is empty, cannot be reached, or the server gives no parts of files.
    """

    def __init__(self, address: Address, *, answer_s: float = ANSWER_S) -> None:
        self.address, self.fetched, self._answer_s = address, 0, answer_s
        self._process, self._failed_in_a_row, self._silent_until, self._replaced = 0, 0, 0.0, False
        self._mark: Mark | None = None
        self._connect()
        try:
            self._head = self._submit(0, HEAD_BYTES).result()
        except SlideReadError:
            raise
        except OSError as error:
            raise SlideReadError(f"{address}: {error}; check the address, or download the slide") from None

    @property
    def size(self) -> int:
        """Bytes."""
        return 0 if self._mark is None else self._mark[0]

    def opened(self) -> RemoteFile:
        """Return itself: a connection is opened where one is needed."""
        self.check()
        return self

    def check(self) -> None:
        """Check that no part came of another file."""
        if self._replaced:
            raise SlideReplacedError(f"{self.address}: {REPLACED}")

    def read(self, offset: int, length: int) -> bytes:
        """Return bytes; fewer where the file ends before.

        Raises
        ------
        SlideReplacedError
        OSError
            when they do not come, or fewer than were promised.
        """
        self._connect()
        length = max(0, min(length, self.size - offset))
        if offset + length <= len(self._head):
            return self._head[offset : offset + length]
        with self._lock:
            ahead = self._ahead.pop((offset, length), None)
        if ahead is None:
            return self._submit(offset, length).result()
        content, start = ahead.answer.result(), offset - ahead.offset
        return content[start : start + length]

    def prefetch(self, parts: Iterable[tuple[int, int]]) -> None:
        """Ask for parts that will be read next, neighbours together, several at the same time."""
        self._connect()
        with self._lock:
            new = sorted({part for part in parts if part[1] and part not in self._ahead})
            held, left, wanted = sum(length for _, length in self._ahead), [*self._ahead], 0
            for offset, length, together in _joined(new):
                if (wanted := wanted + length) > HELD_BYTES:
                    return
                while left and held + wanted > HELD_BYTES:  # nobody came for the oldest: another thread had them
                    held -= left[0][1]
                    self._ahead.pop(left.pop(0))
                answer = self._submit(offset, length)
                self._ahead |= dict.fromkeys(together, _Expected(offset, answer))

    def forget(self) -> None:
        """Drop what came and was not read."""
        with self._lock:
            self._ahead.clear()

    def _connect(self) -> None:
        """Begin to ask; anew in a process that was forked off: what would answer is in the other one."""
        if self._process != os.getpid():
            self._lock, self._many = threading.Lock(), asyncio.Semaphore(AT_ONCE)
            self._ahead: dict[tuple[int, int], _Expected] = {}
            self._loop, self._ask = _open(self.address, self._answer_s)
            self._process = os.getpid()  # last: other threads look at it

    def _submit(self, offset: int, length: int) -> Future[bytes]:
        return asyncio.run_coroutine_threadsafe(self._patiently(offset, length), self._loop)

    async def _patiently(self, offset: int, length: int) -> bytes:
        """Ask for a part until it comes, or there is no hope."""
        hopeless = self._failed_in_a_row >= HOPELESS
        if hopeless and time.monotonic() < self._silent_until:
            raise OSError("no answer to those before")
        for number in range(1, 1 + (tries := 1 if hopeless else TRIES)):
            try:
                async with self._many:
                    begun = time.monotonic()
                    part = await self._ask(offset, length)
                return self._accepted(part, offset, length)
            except _NoAnswerError as error:
                told, wait_s, now = str(error), error.wait_s, time.monotonic()
                if now - begun >= self._answer_s:
                    self._silent_until = now + self._answer_s
            if number < tries:
                await asyncio.sleep(max(WAIT_S * 2 ** (number - 1), min(wait_s, self._answer_s)))
        self._failed_in_a_row += 1
        raise OSError(told)

    def _accepted(self, part: _Part, offset: int, length: int) -> bytes:
        """Return a part's bytes; they are as many as were promised, and of the file that was opened."""
        self._mark = self._mark or part.mark
        if self._replaced or part.mark != self._mark:
            self._replaced = True
            raise SlideReplacedError(f"{self.address}: {REPLACED}")
        if len(part.content) != min(length, self._mark[0] - offset):
            raise _NoAnswerError(f"{len(part.content):,} bytes came of {length:,}")
        self.fetched += len(part.content)
        self._failed_in_a_row = 0
        return part.content


def _open(address: Address, answer_s: float) -> tuple[asyncio.AbstractEventLoop, Ask]:
    """Return the loop that asks run in, and what asks."""
    system = file_system(address)
    if address.scheme == "s3":
        return system.loop, lambda offset, length: _ask_s3(system, address, offset, length)
    return system.loop, lambda offset, length: _ask_http(system, address, offset, length, answer_s)


async def _ask_http(system: Any, address: Address, offset: int, length: int, answer_s: float) -> _Part:
    """Ask a web server. What its libraries say is not passed on: it may hold the address with its secrets."""
    import aiohttp

    limits = aiohttp.ClientTimeout(total=None, sock_connect=answer_s, sock_read=answer_s)
    asked = {"Range": f"bytes={offset}-{offset + length - 1}", "Accept-Encoding": "identity"}
    try:
        session = await system.set_session()
        async with session.get(system.encode_url(address.url), headers=asked, timeout=limits) as answer:
            start, total = _judge_answer(answer.status, told := answer.headers, offset)
            content = await answer.content.readexactly(min(length, total - start))
            return _Part(content, (total, told.get("ETag", "").removeprefix("W/"), told.get("Last-Modified", "")))
    except asyncio.IncompleteReadError as error:
        raise _NoAnswerError(f"{len(error.partial):,} bytes came of {length:,}") from None
    except TimeoutError:
        raise _NoAnswerError(f"no answer in {answer_s:g} s") from None
    except ValueError:  # of a host's name, or a port
        raise _RefusedError("no address of the web") from None
    except aiohttp.ClientError as error:
        raise _NoAnswerError(f"the server cannot be reached, or broke off ({type(error).__name__})") from None


def _judge_answer(status: int, headers: Any, offset: int) -> tuple[int, int]:
    """Return where a part begins, and the length of the whole file; OSError where an answer is not the part asked for."""
    if status == 416 and headers.get("Content-Range", "").endswith("*/0"):
        raise _RefusedError("an empty file; expected a whole-slide image; copy it again")
    if status == 200:
        page = headers.get("Content-Type", "").startswith("text/html")
        raise _RefusedError("the server gives a web page" if page else "the server gives whole files only, no ranges of bytes")
    if status in (408, 425, 429) or status >= 500:
        wait_s = headers.get("Retry-After", "")  # or a date, which servers that are busy do not give
        raise _NoAnswerError(f"the server says {status}", float(wait_s) if wait_s.isdecimal() else 0.0)
    if status != 206:
        meaning = {401: " (not allowed)", 403: " (not allowed)", 404: " (not found)", 410: " (gone)"}.get(status, "")
        raise _RefusedError(f"the server says {status}{meaning}")
    found = RANGE.fullmatch(headers.get("Content-Range", ""))
    if found is None or int(found[1]) != offset or headers.get("Content-Encoding", "identity") != "identity":
        raise _RefusedError("the server gives other bytes than those that it was asked for")
    return offset, int(found[3])


async def _ask_s3(system: Any, address: Address, offset: int, length: int) -> _Part:
    """Ask an object store."""
    bucket, key, version = system.split_path(address.url)
    asked = {"Bucket": bucket, "Key": key, "Range": f"bytes={offset}-{offset + length - 1}"}
    try:
        answer = await system._call_s3("get_object", **asked, **({"VersionId": version} if version else {}))
        content = await answer["Body"].read()
    except FileNotFoundError:
        raise _RefusedError("no such object") from None
    except PermissionError:
        raise _RefusedError("not allowed (credentials come from the environment, as for other programs)") from None
    except Exception as error:  # botocore raises whatever the network leads to
        raise _NoAnswerError(f"the store cannot be reached, or broke off ({type(error).__name__})") from None
    found = RANGE.fullmatch(answer.get("ContentRange", ""))
    if found is None or int(found[1]) != offset:
        raise _RefusedError("the store gives other bytes than those that it was asked for")
    return _Part(content, (int(found[3]), answer.get("ETag", ""), str(answer.get("LastModified", ""))))


def _joined(parts: list[tuple[int, int]]) -> list[tuple[int, int, list[tuple[int, int]]]]:
    """Join parts, in order, that lie side by side; return offset and length of each, and the parts in it."""
    joined: list[tuple[int, int, list[tuple[int, int]]]] = []
    for offset, length in parts:
        if joined:
            start, held, together = joined[-1]
            end = max(start + held, offset + length)
            if offset <= start + held + GAP_BYTES and end - start <= MOST_PART_BYTES:
                joined[-1] = (start, end - start, [*together, (offset, length)])
                continue
        joined.append((offset, length, [(offset, length)]))
    return joined
