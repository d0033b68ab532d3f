"""How large a slide's pixels are: what its file says, what the user says, and which sizes can be."""

from __future__ import annotations

import logging
import re
from fractions import Fraction
from typing import Any

from wsi_meta.errors import OVER_0, DataError, MissingMppError, OptionsError, SlideReadError, number, shown
from wsi_meta.files.address import SlidePath
from wsi_meta.slides.resampling import exact_ratio
from wsi_meta.tiffs.tags import UM_PER_RESOLUTION_UNIT

__all__ = [
    "COARSEST_MPP",
    "FINEST_MPP",
    "UsualMpp",
    "differs",
    "find_mpp",
    "given_mpp",
    "listed_mpp",
    "ratio_to",
    "refuse_larger_than_any",
    "stored_mpp",
    "warn_of_another_mpp",
]

logger = logging.getLogger("wsi_meta")

FINEST_MPP = 0.05
"""Below this is no light microscope's pixel. The usual cause is a wrong unit: millimetres, or metres under centimetres."""
COARSEST_MPP = 50.0
"""Above this is no picture of cells."""
LONGEST_MM = 500.0
"""Side that no slide exceeds."""
LARGEST_MM2 = 40_000.0
"""Area of the largest slide, 200 x 200 mm: whole organs are cut that large. An overview of it takes 2 GB."""
COARSER_ALLOWED = 1.05
"""A slide may be this much coarser than what is asked of it before it is refused."""
SAME_SHARE = 0.02
"""Sizes that differ by less than this share count as the same."""
APERIO_CROP = re.compile(r"\[\d+,\d+[ ,](\d+)x(\d+)\]")
"""Width and height of the picture that a description by Aperio is of."""
UM_PER_UNIT = {"inch": UM_PER_RESOLUTION_UNIT[2], "centimeter": UM_PER_RESOLUTION_UNIT[3]}
"""Micrometres of TIFF's units, by OpenSlide's names of them."""


class UsualMpp(float):
    """A pixel size of many slides: of those that state none. One that is given as a plain number overrules what a file says."""


def find_mpp(
    path: SlidePath, given: float | None, properties: dict[str, str], problem: str = ""
) -> tuple[float | None, float | None, str | None]:
    """Return the micrometres per level-0 pixel; what the file states instead; and why they are not known.

    Parameters
    ----------
    given : what the user says, or None; the file says something else where it differs by more than 2 %. A :class:`UsualMpp`
        is for files that say none
    path, properties : the file, and OpenSlide's properties of it
    problem : why what the file states is not understood, if so

    Raises
    ------
    MissingMppError
        when `given` cannot be.
    """
    asked = None if given is None else given_mpp(path, given)
    try:
        stored = stored_mpp(path, properties)
    except MissingMppError as error:
        return asked, None, str(error) if asked is None else None
    if asked is None:
        missing = f"{path}: {problem or 'does not say how large its pixels are'}; pass --mpp (um per level-0 pixel)"
        return stored, None, missing if stored is None else None
    if isinstance(given, UsualMpp) and stored is not None:
        return stored, None, None
    return asked, stored if stored is not None and differs(asked, stored) else None, None


def warn_of_another_mpp(
    path: SlidePath, stated: float | None, used: float | None, given: float | None, properties: dict[str, str]
) -> None:
    """Warn of a file that states another pixel size than the user, or two.

    Parameters
    ----------
    stated, used : what the file says where --mpp overrules it, else None; and what is used: as :func:`find_mpp` returned them
    given : as for :func:`find_mpp`
    properties : OpenSlide's of the file
    """
    if stated is not None:
        logger.warning("%s: says %g um per pixel; %g is used instead, as --mpp or the manifest says", path, stated, used)
    if used is None or not (given is None or (isinstance(given, UsualMpp) and given != used)):
        return
    if given is not None and differs(given, used):
        told = "%s: says %g um per pixel, which is used; --mpp %g is for those that say none (name one slide, or a manifest)"
        logger.warning(told, path, used, given)
    if (tags := _mpp_of_tags(properties)) is not None and differs(tags, used):
        told = "%s: says %g um per pixel, which is used, but %g in its resolution tags; if these are right, "
        logger.warning(told + "give --mpp, or the manifest's mpp", path, used, tags)


def _mpp_of_tags(properties: dict[str, str]) -> float | None:
    """Return the size of a pixel in the tags of an Aperio slide's first page; None where there is none that can be."""
    um = UM_PER_UNIT.get(properties.get("tiff.ResolutionUnit", ""))
    dots = float(properties.get("tiff.XResolution", 0))
    if properties.get("openslide.vendor") != "aperio" or um is None or not dots:
        return None
    return um / dots if FINEST_MPP <= um / dots <= COARSEST_MPP else None


def given_mpp(path: SlidePath, mpp: Any) -> float:
    """Return the micrometres per level-0 pixel that the user gave.

    Raises
    ------
    MissingMppError
        when they cannot be.
    """
    try:
        plain = number("--mpp", mpp)
    except OptionsError as error:
        told = f"--mpp is {shown(mpp)}, which is no number; pass a number of micrometres per level-0 pixel"
        raise MissingMppError(f"{path}: {told}") from error
    return _checked(path, plain, f"--mpp says {plain} um per pixel")


def listed_mpp(place: str, value: str, path: SlidePath) -> float | None:
    """Return the micrometres per level-0 pixel that a manifest gives; None where the value is empty.

    Parameters
    ----------
    place : file and line, for the message
    value, path : of the row, and its slide

    Raises
    ------
    DataError
        when they cannot be.
    """
    try:
        return given_mpp(path, float(value)) if value else None
    except (ValueError, MissingMppError) as error:
        told = "expected micrometres per level-0 pixel, 0.05 to 50, with a decimal point, or nothing"
        raise DataError(f"{place}: mpp '{value}'; {told}") from error


def stored_mpp(path: SlidePath, properties: dict[str, str]) -> float | None:
    """Return the micrometres per level-0 pixel that the file states; None where it states none.

    Parameters
    ----------
    path, properties : the file, and OpenSlide's properties of it

    Raises
    ------
    MissingMppError
        when they cannot be, the pixels are not square, or the file says it of a larger or smaller picture.
    """
    if not {"openslide.mpp-x", "openslide.mpp-y"} <= set(properties):
        return None
    stated = (properties[f"openslide.mpp-{axis}"] for axis in "xy")
    x, y = (_checked(path, value, f"the file says {value} um per pixel") for value in stated)
    if differs(x, y):
        raise MissingMppError(f"{path}: pixels of {x:g} x {y:g} um; expected square ones; pass --mpp to choose one")
    mpp = x if abs(x - y) < 1e-9 else (x + y) / 2
    if properties.get("openslide.vendor") == "aperio":
        _expect_described_size(path, mpp, properties)
    return mpp


def _expect_described_size(path: SlidePath, mpp: float, properties: dict[str, str]) -> None:
    """Expect the description of an Aperio slide to be of its level 0: an export of a part or a coarser level may keep it."""
    if (said := APERIO_CROP.search(properties.get("tiff.ImageDescription", ""))) is None:
        return
    width, height = (int(properties[f"openslide.level[0].{side}"]) for side in ("width", "height"))
    factor, other = int(said[1]) / width, int(said[2]) / height
    if differs(factor, 1) and not differs(factor, other):
        raise MissingMppError(
            f"{path}: its description is of {said[1]} x {said[2]} px of {mpp:g} um, the picture has {width} x {height}; "
            f"pass --mpp ({mpp:.4g} if a part was cut out or MPP was renewed, {mpp * factor:.4g} if a level was exported)"
        )


def refuse_larger_than_any(path: SlidePath, width: int, height: int, mpp: float) -> None:
    """Make sure that a slide is not larger than there are any.

    Parameters
    ----------
    width, height, mpp : level-0 pixels, and their size in micrometres

    Raises
    ------
    SlideReadError
    """
    width_mm, height_mm = width * mpp / 1000, height * mpp / 1000
    if width_mm * height_mm > LARGEST_MM2 or max(width_mm, height_mm) > LONGEST_MM:
        raise SlideReadError(
            f"{path}: {width} x {height} px of {mpp:g} um are {width_mm:,.0f} x {height_mm:,.0f} mm; "
            f"expected at most {LARGEST_MM2:,.0f} mm2, {LONGEST_MM:g} mm long; "
            "copy the slide again (or pass --mpp if the file is wrong)"
        )


def ratio_to(path: SlidePath, mpp: float, wanted: float) -> Fraction:
    """Return the number of a slide's pixels, of `mpp`, per wanted pixel, exactly.

    Raises
    ------
    SlideReadError
        when the slide's are more than 5 % coarser than the wanted ones.
    OptionsError
    """
    most = LONGEST_MM * 1000
    wanted = number(f"{path}: mpp", wanted, f"micrometres per pixel, over 0 and up to {most:g}", least=OVER_0, most=most)
    if (ratio := exact_ratio(wanted, mpp)) * Fraction(COARSER_ALLOWED) < 1:
        raise SlideReadError(
            f"{path}: {mpp:g} um per pixel is too coarse; expected {wanted:g} or finer; "
            "scan the original slide (or pass --mpp if the file is wrong)"
        )
    return ratio


def differs(one: float, other: float) -> bool:
    """Tell whether two sizes are too different to be the same, rounded."""
    return abs(one - other) > SAME_SHARE * other


def _checked(path: SlidePath, value: Any, said: str) -> float:
    try:
        mpp = float(value)
    except (TypeError, ValueError):
        mpp = float("nan")
    if not FINEST_MPP <= mpp <= COARSEST_MPP:
        raise MissingMppError(
            f"{path}: {said}, which cannot be; expected {FINEST_MPP:g} to {COARSEST_MPP:g}; "
            "pass --mpp with the right number of micrometres per level-0 pixel"
        )
    return mpp
