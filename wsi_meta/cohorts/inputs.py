"""What to scan: slides, folders, patterns and manifests become a list of slides, each with the settings of its own."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from glob import escape
from pathlib import Path
from typing import Any

from wsi_meta.annotations.tables import Row, path_in, read_table, refuse_twice
from wsi_meta.cohorts.folders import first_seen, matches, may_hold_slides
from wsi_meta.dicom.series import dicom_series
from wsi_meta.errors import DataError, all_of, truth
from wsi_meta.files.address import Address, SlidePath, real_slide_path, several, slide_name, slide_path
from wsi_meta.files.slide_file import SLIDE_EXTENSIONS, is_mrxs_folder, may_have_parts, mrxs_of
from wsi_meta.outputs.paths import as_path
from wsi_meta.outputs.zarr_folder import is_zarr, is_zarr_image
from wsi_meta.slides.pixel_size import listed_mpp
from wsi_meta.tiling.grid import STRIDES
from wsi_meta.words import counted
from wsi_meta.worklist.summary import SHARED_ROW

__all__ = ["SlideInput", "find_slides", "read_scan_manifest"]

logger = logging.getLogger("wsi_meta")

COLUMNS = ("name", "mpp", "tissue_mask", "annotations", "model", "stride", "patient", "label")
"""Columns that a manifest may have beside ``slide``."""
LONGEST_NAME = 200  # bytes: a file may have 255, and the temporary ones of a store need some of them
EXAMPLES = 3  # files that are named where a folder holds others than slides
PATTERN = re.compile(r"[*?[]")  # what makes a path that does not exist a pattern


@dataclass(frozen=True)
class SlideInput:
    """A slide that is to be scanned. What is None is as for all slides."""

    path: SlidePath
    name: str
    """Of its store, without ``.zarr``."""
    told: str = ""
    """How it comes to be scanned, where that is not plain: the line of a manifest, the files of a DICOM series."""
    given: bool = True
    """Whether it was given itself, not found in a folder."""
    mpp: float | None = None
    tissue_mask: str | None = None
    """An image, or ``none``."""
    model: str | None = None
    stride_px: int | None = None
    annotations: Path | None = None
    """What people drew on it."""
    patient: str = ""
    label: str = ""

    @property
    def scanner_settings(self) -> dict[str, Any]:
        """The settings of its own that belong to a scanner: ``model`` and ``stride_px``, where it has them."""
        settings = {"model": self.model, "stride_px": self.stride_px}
        return {name: value for name, value in settings.items() if value is not None}

    @property
    def slide_settings(self) -> dict[str, Any]:
        """The other settings of its own: ``mpp`` and ``tissue_mask``, where it has them."""
        settings = {"mpp": self.mpp, "tissue_mask": self.tissue_mask}
        return {name: value for name, value in settings.items() if value is not None}


def find_slides(
    inputs: str | Path | Address | Sequence[str | Path | Address],
    *,
    manifest: str | Path | None = None,
    recursive: bool = False,
    extensions: str | Sequence[str] = (),
) -> list[SlideInput]:
    """Return the slides that are to be scanned, in the order in which they were given; those of a folder by name.

    Parameters
    ----------
    inputs : one or several slides, addresses, folders, patterns such as ``slides/*/*.svs``. All DICOM files of one series in a
        folder are one slide, named after it where it holds nothing else. An ``.mrxs`` file's folder stands for that file
    manifest : see :func:`read_scan_manifest`; its slides come last
    recursive : look also into the folders in a folder
    extensions : how files end that are taken from a folder; none means :data:`.SLIDE_EXTENSIONS`. Others are named in a warning

    Raises
    ------
    DataError
        when there is no slide, two slides have one name, a slide has two, or the manifest is wrong.
    """
    inputs, endings = several(inputs), all_of("extensions", several(extensions), str, "endings of files, such as .tif")
    wanted = tuple(f".{ending.lower().lstrip('.')}" for ending in endings)
    search = _Search(truth("recursive", recursive), wanted or SLIDE_EXTENSIONS)
    found = [slide for given in inputs for slide in search.find(slide_path(given))]
    if manifest is not None:
        found += read_scan_manifest(manifest)
    if not found:
        raise DataError(f"{', '.join(map(str, inputs))}: no slides; expected {', '.join(search.extensions)}")
    return _each_once(found)


def read_scan_manifest(path: str | Path) -> list[SlideInput]:
    """Return the slides of a CSV file that has a row for each one that is to be scanned, in its order.

    Columns: ``slide``, a file or the folder of one slide; where wanted ``name`` (of its store), ``mpp``, ``tissue_mask``
    (an image or ``none``), ``annotations``, ``model``, ``stride``, ``patient`` and ``label``. What is empty is as for all.
    Paths are relative to the manifest. Slides that are not there are told of when it is their turn.

    Raises
    ------
    DataError
        when it is damaged, has other columns, an empty row, two slides of one name, or a value that cannot be.
    """
    path = as_path("manifest", path)
    rows = read_table(path, ("slide",), "slides", optional=COLUMNS, strict=True)
    search = _Search(recursive=False, extensions=SLIDE_EXTENSIONS)
    slides = [_read_row(path, row, search) for row in rows]
    if not slides:
        raise DataError(f"{path}: no slides in it; expected a row for each slide")
    refuse_twice(path, ((slide.name, row.line) for slide, row in zip(slides, rows, strict=True)))
    return slides


def _read_row(path: Path, row: Row, search: _Search) -> SlideInput:
    """Return the slide of a row; DataError that names the line where something in it cannot be."""
    place = f"{path}: line {row.line}"
    values = dict(zip(("slide", *COLUMNS), row, strict=True))
    if not values["slide"]:
        raise DataError(f"{place}: names no slide; expected one in each row; remove the row")
    found = list(search.find(path_in(place, path.parent, values["slide"])))
    if len(found) != 1 or not found[0].given:
        raise DataError(f"{place}: '{values['slide']}' is a folder or a pattern; expected one slide in each row")
    if (name := values["name"]) and (Path(name).name != name or name.startswith(".") or len(name.encode()) > LONGEST_NAME):
        raise DataError(f"{place}: name '{name}'; expected a name that a file can have")
    return replace(
        found[0],
        name=name or found[0].name,
        told="; ".join(filter(None, (f"line {row.line} of {path.name}", found[0].told))),
        mpp=listed_mpp(place, values["mpp"], found[0].path),
        tissue_mask=_read_path(place, "tissue_mask", values["tissue_mask"], path.parent, word="none"),
        model=_read_path(place, "model", values["model"], path.parent, word="default"),
        stride_px=_read_stride(place, values["stride"]),
        annotations=Path(drawn) if (drawn := _read_path(place, "annotations", values["annotations"], path.parent)) else None,
        patient=values["patient"],
        label=values["label"],
    )


def _read_path(place: str, column: str, value: str, folder: Path, *, word: str | None = None) -> str | None:
    """Return the path of a file that is there, or the word that stands for none; None where the value is empty."""
    if not value or value == word:
        return value or None
    path = path_in(place, folder, value)
    if isinstance(path, Address) or not path.is_file():
        raise DataError(f"{place}: {column}: there is no file {path}; expected paths from the manifest on")
    return str(path)


def _read_stride(place: str, value: str) -> int | None:
    whole = value.removesuffix(".0")  # pandas writes so where a row has none
    if whole and whole not in map(str, STRIDES):
        raise DataError(f"{place}: stride '{value}'; expected a multiple of 8 up to 96, or nothing")
    return int(whole) if whole else None


def _each_once(found: Iterable[SlideInput]) -> list[SlideInput]:
    """Return each slide once that was found in several ways; DataError when two have one name, or one is given twice."""
    kept, names = dict[str, SlideInput](), dict[str, str]()
    for slide in found:
        if (name := names.setdefault(str(real_slide_path(slide.path)), slide.name)) != slide.name:
            told = SHARED_ROW if isinstance(slide.path, Address) else "a slide has one map, and one row in the summary"
            raise DataError(f"{slide.path}: is given twice, as '{name}' and '{slide.name}'; {told}; scan it into several --out")
        if (first := kept.setdefault(slide.name, slide)) is slide:
            continue
        if real_slide_path(first.path) == real_slide_path(slide.path):
            if first.given and slide.given and not may_have_parts(slide.path):
                raise DataError(f"{slide.path}: is given twice; expected each slide once; leave one out")
        else:
            raise DataError(
                f"{slide.name}: the name of several slides ({first.path}, {slide.path}); expected names of their own; "
                "scan them into several --out, or name them in a manifest"
            )
    return list(kept.values())


@dataclass
class _Search:
    """Finds slides in folders."""

    recursive: bool
    extensions: tuple[str, ...]
    _series: dict[Path, dict[Path, SlideInput]] = field(default_factory=dict)
    """The slide of each DICOM file of a folder that was looked through."""
    _left_out: list[Path] = field(default_factory=list)
    _seen: set[Path] = field(default_factory=set)
    """Folders, by their real names, that were looked into for what is given."""

    def find(self, given: SlidePath) -> Iterator[SlideInput]:
        """Yield the slides that a path, pattern or address stands for; warn of what is passed over."""
        self._left_out, self._seen = [], set()
        if isinstance(given, Address):
            yield SlideInput(given, slide_name(given))
        elif given.is_dir() and not is_zarr(given):
            yield from self._given_folder(given)
        elif pattern := _as_pattern(given):
            yield from self._matches(given, pattern)
        else:
            yield self._file(given)
        if self._left_out:
            self._tell(given)

    def _file(self, path: Path) -> SlideInput:
        """Return the slide of a file: one of a DICOM series stands for it."""
        series = self._series_in(path.parent) if dicom_series(path) is not None else {}
        return series.get(path) or SlideInput(path, slide_name(path))

    def _matches(self, given: Path, pattern: str) -> Iterator[SlideInput]:
        """Yield what a pattern matches. Files that end otherwise are taken where the pattern says how they end."""
        if not (found := matches(pattern)):
            raise DataError(f"{given}: nothing has such a name; expected slides")
        says_ending = not PATTERN.search(given.suffix or "*")
        for path in map(Path, found):
            if path.is_dir() and not is_zarr_image(path):
                yield from (replace(slide, given=False) for slide in self._given_folder(path))
            elif says_ending or self._is_wanted(path):
                yield replace(self._file(path), given=False)
            elif not is_mrxs_folder(path.parent):
                self._left_out.append(path)

    def _given_folder(self, folder: Path) -> Iterator[SlideInput]:
        """Yield the one slide that a folder is, or the slides in it."""
        if not is_mrxs_folder(folder):
            if not first_seen(folder, self._seen):
                return
            found = list(dict.fromkeys(self._folder(folder)))  # each file of a series gives its slide
            whole = len(found) == 1 and Path(str(found[0].path)).parent == folder and found[0].name == folder.absolute().name
            yield from (replace(slide, given=whole and bool(slide.told)) for slide in found)
        elif (index := mrxs_of(folder)) is not None:
            yield SlideInput(index, slide_name(index))
        else:
            raise DataError(f"{folder}: holds the pixels of a .mrxs slide, which lies not beside it; copy that file too")

    def _folder(self, folder: Path) -> Iterator[SlideInput]:
        """Yield the slides in a folder, and with `recursive` in the folders in it."""
        for path in sorted(folder.iterdir()):
            is_folder = path.is_dir() and not is_zarr_image(path)
            if is_folder and is_mrxs_folder(path) and mrxs_of(path) is not None:
                continue  # read with its .mrxs
            if is_folder and self.recursive and may_hold_slides(path):
                yield from self._folder(path) if first_seen(path, self._seen) else ()
            elif not is_folder and self._is_wanted(path):
                yield replace(self._file(path), given=False)
            else:
                self._left_out.append(path)

    def _is_wanted(self, path: Path) -> bool:
        """Tell whether a file in a folder is taken for a slide."""
        wanted = path.name.lower().endswith(self.extensions) and not path.name.startswith(".")
        return wanted and (path.suffix.lower() != ".dcm" or path in self._series_in(path.parent))

    def _series_in(self, folder: Path) -> dict[Path, SlideInput]:
        """Return the slide that each DICOM file of a folder stands for; files of no slide are not in it."""
        if folder not in self._series:
            files = sorted(path for path in folder.iterdir() if path.is_file()) if folder.is_dir() else []
            parts: dict[str, list[Path]] = {}
            for path in files:
                if (series := dicom_series(path)) is not None:
                    parts.setdefault(series, []).append(path)
            alike = len(parts) == 1 and not {path.suffix.lower() for path in files} & {*SLIDE_EXTENSIONS} - {".dcm"}
            self._series[folder] = {path: _one_slide(some, folder, alike) for some in parts.values() for path in some}
        return self._series[folder]

    def _tell(self, given: SlidePath) -> None:
        """Warn of what lies in a folder and is not read."""
        expected = f"expected {', '.join(self.extensions)} (--extension)"
        for kind, remedy in (("files", expected), ("folders", "--recursive reads slides in them")):
            if names := [path.name for path in self._left_out if path.is_dir() == (kind == "folders")]:
                told = ", ".join(names[:EXAMPLES] + ["..."] * (len(names) > EXAMPLES))
                logger.warning("%s: %s not read (%s); %s", given, counted(len(names), kind[:-1]), told, remedy)


def _as_pattern(given: Path) -> str:
    """Return the pattern that a path is, in which folders that are there are meant by their names; empty where it is none."""
    there = next(path for path in (given, *given.parents) if path.exists())
    rest = str(given.relative_to(there))
    return str(Path(escape(str(there)), rest)) if PATTERN.search(rest) else ""


def _one_slide(files: Sequence[Path], folder: Path, named_alike: bool) -> SlideInput:
    """Return the slide of the files of one series. Its largest file, with the finest level, is the one to open.

    It bears the folder's name where its files are all that the folder holds.
    """
    largest = max(files, key=lambda path: path.stat().st_size)
    if len(files) == 1:
        return SlideInput(largest, slide_name(largest))
    name = folder.absolute().name if named_alike else slide_name(largest)
    return SlideInput(largest, name, f"{len(files)} DICOM files of one series are one slide")
