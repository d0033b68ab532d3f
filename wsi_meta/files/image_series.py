"""Files that hold several pictures, such as the scenes of a scanner: one is read, so no other may be as large."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

from wsi_meta.errors import SlideReadError
from wsi_meta.files.zarr_chunks import may_come_later
from wsi_meta.tiffs.structure import pages_of
from wsi_meta.tiffs.tags import IS_MASK, REDUCED
from wsi_meta.words import printable, some_of

__all__ = [
    "Picture",
    "SeveralPicturesError",
    "expect_one",
    "expect_one_in_tiff",
    "ome_root",
    "pictures_of_tiff",
    "pictures_of_zarr",
]

BESIDE = re.compile(r"(?<![a-z])(label|macro|thumbnail|overview|barcode)(?![a-z])", re.I)
"""How pictures are called that scanners take beside the slide."""
ROUNDED_PX = 1
"""Sizes of levels are rounded by less than this."""
MOST_LETTERS = 40
"""Of the name of a picture in a message."""
MOST_XML, MOST_SEARCHED = 16 << 20, 300
"""Letters of the longest OME-XML that is read for names; letters of other descriptions that are searched for them."""
MOST_PICTURES = 1000
"""Pictures that are looked for."""
IMAGEJ = re.compile(r"ImageJ=.*?^images=(\d+)$", re.S | re.M)
"""How ImageJ tells of pictures that have no pages of their own."""

logger = logging.getLogger("wsi_meta")


class SeveralPicturesError(SlideReadError):
    """A file holds several pictures, of which no one can say which is the slide."""


class Picture(NamedTuple):
    """A picture in a file."""

    size: tuple[int, int]
    """Width and height."""
    name: str = ""

    def __str__(self) -> str:
        size = f"{self.size[0]} x {self.size[1]} px"
        return f"'{printable(self.name[:MOST_LETTERS])}' {size}" if self.name else size


def expect_one(display_name: object, pictures: list[Picture]) -> None:
    """Refuse a file of which another picture is at least as large as the first, which is read; warn of smaller ones.

    Labels, overviews and thumbnails are passed over, where they are called so; their sizes count where the first is one.

    Parameters
    ----------
    display_name : what messages call the file

    Raises
    ------
    SeveralPicturesError
    """
    read, others = pictures[0], pictures[1:]
    unnamed = [other for other in others if not BESIDE.search(other.name)]
    if any(_pixels(other) >= _pixels(read) for other in (others if BESIDE.search(read.name) else unnamed)):
        raise SeveralPicturesError(
            f"{display_name}: {len(pictures)} pictures ({_listed(pictures)}); expected one, or a first that is the largest; "
            "export each picture or scene to a file of its own"
        )
    if unnamed:
        logger.warning(
            "%s: only its first picture is read (%s), not %s; if there is tissue on another, export each to a file of its own",
            display_name,
            read,
            _listed(unnamed),
        )


def expect_one_in_tiff(path: Path, display_name: object, read: int) -> None:
    """Expect one picture in a TIFF, as :func:`expect_one` does, of which another library reads a page.

    Parameters
    ----------
    read : number of that page
    """
    if len(pages_of(path)) < 2:
        return
    import tifffile

    try:
        with tifffile.TiffFile(path) as file:
            pictures = pictures_of_tiff(file, read)
    except Exception:  # tifffile raises whatever odd tags lead to, and the other library reads the file
        return
    expect_one(display_name, pictures)


def pictures_of_zarr(root: Any, group: Any, multiscales: list[Any]) -> list[Picture]:
    """Return the picture of an OME-Zarr that is read, and the others; those that are damaged or not there are passed over.

    Parameters
    ----------
    root : the group of the file
    group : the one that is read: `root`, or its series ``0`` where it is laid out as by bioformats2raw
    multiscales : what `group` says of its pictures; the first is read
    """
    levels = {dataset["path"] for dataset in multiscales[0]["datasets"]}

    def another(told: Any) -> Picture | None:
        return None if told["datasets"][0]["path"] in levels else _zarr_picture(group, told)

    beside = [_if_whole(root, another, told) for told in multiscales[1:]]
    if group.path != root.path:
        beside += [_if_whole(root, _series_picture, series) for series in _further_series(root)]
    return [_zarr_picture(group, multiscales[0]), *filter(None, beside)]


def _series_picture(series: Any) -> Picture:
    return _zarr_picture(series, _said_of(series)["multiscales"][0])


def _said_of(group: Any) -> Any:
    """Return what a group says of itself: under ``ome`` in NGFF 0.5."""
    attributes = dict(group.attrs)
    return attributes.get("ome", attributes)


def _zarr_picture(group: Any, multiscale: Any) -> Picture:
    first = multiscale["datasets"][0]
    axes = [axis if isinstance(axis, str) else axis["name"] for axis in multiscale["axes"]]
    sides = dict(zip(axes, group[first["path"]].shape, strict=False))
    return Picture((int(sides["x"]), int(sides["y"])), str(multiscale.get("name", "")))


def _further_series(root: Any) -> Iterator[Any]:
    """Yield the groups of bioformats2raw's series after the first: those that are listed, else those that are numbered."""
    names = _if_whole(root, lambda: _said_of(root["OME"])["series"])
    listed = isinstance(names, list)
    for name in map(str, names) if listed else map(str, range(1, MOST_PICTURES)):
        series = None if name == "0" else _if_whole(root, root.__getitem__, name)
        if hasattr(series, "group_keys"):
            yield series
        elif not listed:
            return


def _if_whole(root: Any, describe: Callable[..., Any], *told: Any) -> Any:
    """Return what tells of a picture beside the slide; None where that is damaged or not there: the slide may be whole.

    What may come when it is asked for again is raised.
    """
    try:
        return describe(*told)
    except Exception as error:  # zarr raises whatever odd metadata lead to
        if may_come_later(error, far=hasattr(root.store, "fs")):
            raise
        return None


def pictures_of_tiff(file: Any, read: int = 0) -> list[Picture]:
    """Return the page of a TIFF that is read, and those other pages that are no levels, label or mask of it.

    Parameters
    ----------
    file : a `tifffile.TiffFile`
    read : number of the page
    """
    pages = list(file.pages)
    first, told = Picture(_size_of(pages[read])), str(pages[0].description)
    nested, names = bool(pages[read].subifds), _ome_names(told) if file.is_ome else {}
    if (hidden := IMAGEJ.match(told)) and int(hidden[1]) > len(pages) == 1:
        return [first] * min(int(hidden[1]), MOST_PICTURES)
    found = [first]
    for page in pages[:read] + pages[read + 1 :]:
        other, kind = Picture(_size_of(page)), int(page.subfiletype)
        tile = int(page.tilewidth or 0), int(page.tilelength or 0)
        level = not nested and not page.subifds and _is_coarser(other.size, first.size, tile)
        larger = _pixels(other) > _pixels(first)  # whatever it says that it is, the one that is read is not the slide
        if not kind & IS_MASK and (larger or not (kind & REDUCED or level)):
            found.append(other._replace(name=names.get(other.size, "") if names else _called(str(page.description))))
    return found


def _is_coarser(size: tuple[int, int], full: tuple[int, int], tile: tuple[int, int]) -> bool:
    """Tell whether a size is another one, scaled down; if by a power of two, padded or cut to whole tiles, too.

    Levels are made each from the one before, so that a padding may count twice.
    """
    if size[0] * size[1] >= full[0] * full[1]:
        return False
    least = max(whole / (side + ROUNDED_PX) for whole, side in zip(full, size, strict=True))
    most = min(whole / max(side - ROUNDED_PX, 0.1) for whole, side in zip(full, size, strict=True))
    factor = 2 ** round(math.log2(max(full[0] / size[0], full[1] / size[1])))
    halved = all(
        abs(side - whole / factor) <= 2 * step + ROUNDED_PX for side, whole, step in zip(size, full, tile, strict=True)
    )
    return least <= most or (factor > 1 and halved)


def _size_of(page: Any) -> tuple[int, int]:
    return int(page.imagewidth), int(page.imagelength)


def _pixels(picture: Picture) -> int:
    return picture.size[0] * picture.size[1]


def _listed(pictures: list[Picture]) -> str:
    return some_of([str(picture) for picture in pictures])


def _called(description: str) -> str:
    """Return what a page's description calls it: the word for what lies beside a slide, else nothing."""
    found = BESIDE.search(description[:MOST_SEARCHED])
    return found[0].lower() if found else ""


def ome_root(text: str) -> ElementTree.Element | None:
    """Return the root of OME-XML; None where a text is no XML, or holds what can be made to grow without end."""
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        return None
    try:
        return ElementTree.fromstring(text.strip("\0 \t\r\n"))
    except ElementTree.ParseError:
        return None


def _ome_names(text: str) -> dict[tuple[int, int], str]:
    """Return the names of the images of OME-XML by their sizes; empty where two have the same."""
    root = ome_root(text) if len(text) <= MOST_XML else None
    names: dict[tuple[int, int], str] = {}
    try:
        for image in () if root is None else root.iterfind("{*}Image"):
            for pixels in image.iterfind("{*}Pixels"):
                size = int(pixels.get("SizeX", 0)), int(pixels.get("SizeY", 0))
                names[size] = image.get("Name", "") if size not in names else ""
    except ValueError:
        return {}
    return names
