"""Files of weights as bytes: their metadata, and whether they hold what was written. It does not load torch."""

from __future__ import annotations

import hashlib
import json
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path

from wsi_meta.errors import ModelFileError, OutputPathError
from wsi_meta.words import first_line, from_json

__all__ = [
    "CODE",
    "check_model_name",
    "check_written",
    "holds_pickle",
    "holds_safetensors",
    "is_script",
    "read_metadata",
    "refuse_damage",
    "refuse_script",
    "refuse_text",
    "with_metadata",
]

CODE = re.compile(r"[^/]+/code/.+\.py")
"""Files of a TorchScript's archive that hold its program."""
WEIGHTS_KEY = "wsi_meta_weights"
"""Where a model file's metadata holds the SHA-256, hexadecimal, of all that follows its header."""


def check_model_name(path: Path) -> None:
    """Refuse to write a model under a name of another kind of file, such as a patch's; OutputPathError if it is one."""
    if path.suffix.lower() != ".safetensors":
        raise OutputPathError(f"{path}: no name of a model file; expected one that ends in .safetensors")


def read_metadata(path: Path) -> dict[str, str]:
    """Read a safetensors file's metadata; safetensors itself checks that the file is whole.

    Raises
    ------
    ModelFileError
        when there is no such file, or it is none.
    """
    if not path.exists():
        raise ModelFileError(f"{path}: no such model file; expected a .safetensors file from 'wsi-meta train', or 'default'")
    if path.is_dir():
        raise ModelFileError(f"{path}: a directory; expected a .safetensors model file")
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError) as error:
        if holds_pickle(path):
            refuse_script(path)
            raise ModelFileError(
                f"{path}: a pickle, which can run code when it is opened; expected safetensors "
                "(weights can go to 'train --init')"
            ) from None
        refuse_text(path)
        raise ModelFileError(
            f"{path}: not a safetensors file, or a truncated one ({first_line(error)}); train or download it again"
        ) from error


def holds_safetensors(path: Path) -> bool:
    """Tell whether a file begins as safetensors do, whatever its name: the size of a header, and the header."""
    try:
        with path.open("rb") as file:
            start = file.read(9)
        return start[8:] == b"{" and int.from_bytes(start[:8], "little") <= path.stat().st_size - 8
    except OSError:
        return False


def holds_pickle(path: Path) -> bool:
    """Tell whether a file begins as ``torch.save`` writes it, and not as safetensors: the size of a header, and the header."""
    with path.open("rb") as file:
        start = file.read(9)
    return start[8:] != b"{" and (start[:2] == b"PK" or start[:1] == b"\x80")


def is_script(path: Path) -> bool:
    """Tell whether a file is a TorchScript archive."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(CODE.fullmatch(name) for name in archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False


def refuse_script(path: Path) -> None:
    """Refuse a TorchScript where weights are expected, by what makes a model of it; ModelFileError."""
    if is_script(path):
        told = "a TorchScript, which is a program; expected weights as safetensors"
        raise ModelFileError(f"{path}: {told}: 'wsi-meta import-model' makes a model file of one with its config.json")


def refuse_text(path: Path) -> None:
    """Refuse what often lies where weights were meant to be downloaded, by what it is; ModelFileError."""
    with path.open("rb") as file:
        start = file.read(64).lstrip(b"\xef\xbb\xbf \r\n\t")
    if start.startswith(b"version https://git-lfs"):
        raise ModelFileError(f"{path}: a pointer of Git LFS; expected the file that it stands for: fetch it by 'git lfs pull'")
    if start.startswith(b"<"):
        raise ModelFileError(f"{path}: a web page; expected weights: download the file itself, not the page that shows it")


def with_metadata(content: bytes, metadata: Mapping[str, str]) -> bytes:
    """Return a safetensors file that has no metadata with some, in their order; the library writes them in any order.

    To them is added what :func:`check_written` compares.
    """
    header, weights = _parts(content)
    metadata = {**metadata, WEIGHTS_KEY: hashlib.sha256(weights).hexdigest()}
    text = json.dumps({"__metadata__": metadata} | from_json(header)).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + weights


def check_written(content: bytes, source: object) -> None:
    """Refuse a safetensors file whose weights were changed since: safetensors itself compares lengths only.

    A lost power or a download that made room before it failed leaves zeros. Files of others and older ones do not say what
    their weights were.

    Parameters
    ----------
    content : of the file, which safetensors reads
    source : names the file, for messages

    Raises
    ------
    ModelFileError
    """
    header, weights = _parts(content)
    written = (from_json(header).get("__metadata__") or {}).get(WEIGHTS_KEY)
    if written is not None and written != hashlib.sha256(weights).hexdigest():
        mend = f"copy or download it again; if they were changed on purpose, save them without '{WEIGHTS_KEY}' in the metadata"
        raise ModelFileError(f"{source}: its weights are not those that its metadata tells; {mend}")


def refuse_damage(path: Path) -> None:
    """Verify the checksums of the parts of a file of ``torch.save``, which torch stores but does not verify.

    A program may have told torch to store none (``torch.serialization.set_crc32_options``): all of them are 0 then.

    Raises
    ------
    ValueError, zipfile.BadZipFile
    """
    with zipfile.ZipFile(path) as archive:
        stored = any(part.CRC for part in archive.infolist())
        if stored and (damaged := archive.testzip()):
            raise ValueError(f"{damaged} is damaged")


def _parts(content: bytes) -> tuple[bytes, memoryview]:
    """Return the header, as JSON, and the bytes of all tensors."""
    tensors = 8 + int.from_bytes(content[:8], "little")
    return content[8:tensors], memoryview(content)[tensors:]
