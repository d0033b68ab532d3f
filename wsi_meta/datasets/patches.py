"""Labelled patches that are read on demand: what training and evaluation work on."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wsi_meta.annotations.camelyon_slides import patient_of
from wsi_meta.datasets.hdf5 import Hdf5Rows
from wsi_meta.datasets.rgb_images import check_mode, read_rgb
from wsi_meta.errors import DataError
from wsi_meta.files.process_settings import whole_pictures
from wsi_meta.models.preprocessing import Preprocessing
from wsi_meta.slides.pixel_size import COARSER_ALLOWED, differs
from wsi_meta.words import first_line

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray
    from torch.utils.data import Dataset

if TYPE_CHECKING:
    TorchDataset = Dataset[tuple[torch.Tensor, int]]
else:
    TorchDataset = object  # torch's DataLoader asks for no base class, and torch takes seconds to import

__all__ = ["Patches", "content_of", "contents_of", "join"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Patches(TorchDataset):
    """Labelled patches that are read on demand; a map-style dataset for torch's ``DataLoader``.

    Patches are found and described without torch, so that wrong ones are refused at once.
    """

    files: tuple[Path, ...]
    """File of each patch, as it was named; the HDF5 file itself for the official layout."""
    rows: NDArray[np.int64]
    """Row within the HDF5 file, -1 for an image file; shape (n,)."""
    labels: NDArray[np.uint8]
    """1 tumor, 0 normal; shape (n,)."""
    patch_px: int = 96
    mpp: float | None = None
    """Micrometres per pixel; None where nothing tells."""
    slides: NDArray[np.str_] | None = None
    """Name of the slide that each patch was cut from, shape (n,), empty where that is not known; None where it is of none."""
    named_by_sha1: NDArray[np.bool_] | None = None
    """Whether an image file's name is the SHA-1 of its RGB bytes, as Kaggle's ids are; shape (n,); None for no patch."""
    contents: NDArray[np.uint8] | None = None
    """SHA-1 of each patch's pixels, shape (n, 20); None where they were not all read yet."""
    root: Path = field(default_factory=Path.cwd, repr=False, compare=False)
    """Folder that relative files count from, wherever the process goes."""
    hdf5: Hdf5Rows = field(default_factory=Hdf5Rows, repr=False, compare=False)
    """The open HDF5 files."""

    @property
    def pixels(self) -> str | None:
        """SHA-256 over the pixels of all patches in order, hexadecimal; None where they were not all read yet."""
        return None if self.contents is None else hashlib.sha256(self.contents.tobytes()).hexdigest()

    @property
    def patients(self) -> NDArray[np.str_] | None:
        """Patient of each patch, by :func:`.patient_of` its slide, shape (n,); None and empty as `slides` are."""
        if self.slides is None:
            return None
        names, of = np.unique(self.slides, return_inverse=True)
        return np.array([patient_of(name) for name in names.tolist()], np.str_)[of]

    @property
    def groups(self) -> NDArray[np.str_] | None:
        """`patients`, to draw whole ones of; None unless the slide of every patch is known."""
        return None if self.slides is None or (self.slides == "").any() else self.patients

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        """Return patch and label: uint8 tensor (patch_px, patch_px, 3), RGB, and 0 or 1; DataError if it cannot be read."""
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[torch.Tensor, int]]:
        """Return patches and labels at `indices`, in that order: what a ``DataLoader`` calls for a whole batch."""
        import torch

        patches = self.read_many(indices)
        return [(torch.from_numpy(pixels), int(self.labels[index])) for pixels, index in zip(patches, indices, strict=True)]

    def read(self, index: int) -> NDArray[np.uint8]:
        """Read one patch; see :meth:`read_many`."""
        return self.read_many([index])[0]

    def read_many(self, indices: Sequence[int]) -> list[NDArray[np.uint8]]:
        """Read patches as uint8 arrays (patch_px, patch_px, 3), RGB, in the order of `indices`.

        Rows of one HDF5 file are read together (see :class:`wsi_meta.datasets.hdf5.Hdf5Rows`).

        Raises
        ------
        DataError
            for a patch that does not decode, is not `patch_px` square, or whose pixels do not match its name.
        """
        pixels: list[NDArray[np.uint8]] = [np.empty(0, np.uint8)] * len(indices)
        places_in: dict[Path, list[int]] = {}
        for place, index in enumerate(indices):
            if self.rows[index] >= 0:
                places_in.setdefault(self.files[index], []).append(place)
            else:
                pixels[place] = self._read_image(index)
        for path, places in places_in.items():
            read = self.hdf5.read(self.root / path, self.rows[[indices[place] for place in places]], path)
            for place, patch in zip(places, read, strict=True):
                pixels[place] = patch
        return pixels

    def name(self, index: int) -> str:
        """Return a patch's name for people: the name of its file, or ``<HDF5 file>[row]``."""
        row = self.rows[index]
        return self.files[index].name if row < 0 else f"{self.files[index].name}[{row}]"

    def check(self) -> None:
        """Read every image's header, so that a bad file is reported before the first step and not hours later.

        Raises
        ------
        DataError
            for the first file that is no image or not `patch_px` square, and when there is only one class.
        """
        for path in (path for path, row in zip(self.files, self.rows, strict=True) if row < 0):
            with self._opened_image(path) as image:
                check_mode(image)
                self._check_shape(path, image.size)
        self.check_classes()

    def check_mpp(self, shown: float) -> None:
        """Compare the pixel size with what a model is shown; warn of one that is a little off, or that nothing tells.

        Raises
        ------
        DataError
            when it is more than 5 % off: what is measured on such patches says nothing of the model.
        """
        self.warn_of_unknown_mpp(shown)
        if self.mpp is None or not differs(self.mpp, shown):
            return
        told = f"{self.files[0].parent}: patches of {self.mpp:g} um per pixel, and the model is shown {shown:g}"
        if max(self.mpp / shown, shown / self.mpp) > COARSER_ALLOWED:
            raise DataError(f"{told}; expected the same; cut them again with 'wsi-meta sample --model'")
        logger.warning("%s", told)

    def warn_of_unknown_mpp(self, shown: float) -> None:
        """Warn where nothing tells the pixel size, and a model is shown another one than PCam's, which these may have."""
        if self.mpp is None and differs(shown, Preprocessing().mpp):
            told = "%s: the patches do not tell their pixel size; taken to be %g um, which the model is shown"
            logger.warning(told, self.files[0].parent, shown)

    def check_classes(self) -> None:
        """Raise a DataError when there is only one class, or nothing."""
        tumor = int(self.labels.sum())
        if tumor in (0, len(self)):
            only = "normal (0)" if tumor == 0 else "tumor (1)"
            place = self.files[0].parent if self.files else "patches"
            raise DataError(f"{place}: all {len(self)} patches are {only}; expected both classes")

    def select(self, indices: NDArray[np.int64]) -> Patches:
        """Return the patches at `indices`, in that order."""
        return replace(
            self,
            files=tuple(self.files[i] for i in indices),
            rows=self.rows[indices],
            labels=self.labels[indices],
            slides=None if self.slides is None else self.slides[indices],
            named_by_sha1=None if self.named_by_sha1 is None else self.named_by_sha1[indices],
            contents=None if self.contents is None else self.contents[indices],
        )

    def fingerprint(self) -> str:
        """Return a SHA-256 over file names, rows and labels in order, hexadecimal.

        It is no proof: the names of PCam's HDF5 files are those of every data set. `pixels` are.
        """
        digest = hashlib.sha256()
        for path, row, label in zip(self.files, self.rows, self.labels, strict=True):
            digest.update(f"{path.name} {row} {label}\n".encode(errors="surrogateescape"))  # a name's bytes as they are
        return digest.hexdigest()

    def summary(self) -> dict[str, int | str]:
        """Return number, tumor patches, fingerprint and, where all were read, digest of the pixels, as a card holds them."""
        read = {} if self.pixels is None else {"pixels": self.pixels}
        return {"n": len(self), "tumor": int(self.labels.sum()), "sha256": self.fingerprint(), **read}

    def _read_image(self, index: int) -> NDArray[np.uint8]:
        path = self.files[index]
        with self._opened_image(path) as image:
            pixels = read_rgb(image)
        self._check_shape(path, (pixels.shape[1], pixels.shape[0]))
        if self.named_by_sha1 is not None and self.named_by_sha1[index]:
            found = hashlib.sha1(pixels.tobytes(), usedforsecurity=False).hexdigest()
            if found != path.stem.lower():
                raise DataError(
                    f"{path}: damaged or re-encoded: SHA-1 of its pixels is {found}, not its name; download it again"
                )
        return pixels

    @contextmanager
    def _opened_image(self, path: Path) -> Iterator[Any]:
        """Open an image; raise a DataError for any error while it is open."""
        from PIL import Image

        try:
            with whole_pictures(), Image.open(self.root / path) as image:
                yield image
        except DataError:
            raise
        except FileNotFoundError as error:
            raise DataError(f"{path}: no such file; expected an image") from error
        except (OSError, ValueError, TypeError, SyntaxError, Image.DecompressionBombError) as error:
            raise DataError(f"{path}: does not decode as an image ({first_line(error)}); remove or replace it") from error

    def _check_shape(self, path: Path, size: tuple[int, int]) -> None:
        if size != (self.patch_px, self.patch_px):
            mpp, expected = self.mpp or Preprocessing().mpp, f"{self.patch_px}x{self.patch_px}"
            side = f"{self.patch_px * mpp:.0f}"
            raise DataError(
                f"{path}: {size[0]}x{size[1]} px; expected {expected}; cut it anew at {mpp:g} um per pixel (wsi-meta sample), "
                f"or resize it only if it shows {side} x {side} um"
            )


def content_of(pixels: NDArray[np.uint8]) -> bytes:
    """Return the SHA-1 of one patch's pixels."""
    return hashlib.sha1(pixels.tobytes(), usedforsecurity=False).digest()


def contents_of(contents: Iterable[bytes]) -> NDArray[np.uint8]:
    """Return :func:`content_of` of each patch as `Patches.contents` has them, (n, 20)."""
    return np.frombuffer(b"".join(contents), np.uint8).reshape(-1, hashlib.sha1(usedforsecurity=False).digest_size)


def join(parts: Sequence[Patches]) -> Patches:
    """Return the patches of all parts in order.

    Raises
    ------
    DataError
        when the parts have pixels of different sizes.
    """
    slides = [np.zeros(len(part), np.str_) if part.slides is None else part.slides for part in parts]
    named = [np.zeros(len(part), bool) if part.named_by_sha1 is None else part.named_by_sha1 for part in parts]
    root = parts[0].root
    return Patches(
        tuple(path if part.root == root else part.root / path for part in parts for path in part.files),
        np.concatenate([part.rows for part in parts]),
        np.concatenate([part.labels for part in parts]),
        mpp=_common_mpp(parts),
        root=root,
        slides=np.concatenate(slides) if any(part.slides is not None for part in parts) else None,
        named_by_sha1=np.concatenate(named) if any(flags.any() for flags in named) else None,
    )


def _common_mpp(parts: Sequence[Patches]) -> float | None:
    """Return the pixel size of all parts that know theirs, None where none does; DataError where they differ."""
    known = [(part.mpp, part.files[0].parent) for part in parts if part.mpp is not None]
    for mpp, place in known[1:]:
        if differs(mpp, known[0][0]):
            raise DataError(
                f"{place}: patches of {mpp:g} um per pixel, and those of {known[0][1]} have {known[0][0]:g}; "
                "expected one size; train on them apart, or sample again"
            )
    return known[0][0] if known else None
