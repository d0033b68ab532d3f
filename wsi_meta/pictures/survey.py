"""What of a slide counts as tissue and what was left out, and why; and the mask as a file that people can change."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path

import numpy as np

from wsi_meta.errors import OptionsError, OutputPathError
from wsi_meta.files.address import Address, local_path
from wsi_meta.outputs.checks import check_output, refuse_input, refuse_one_name
from wsi_meta.outputs.paths import as_path
from wsi_meta.outputs.writing import written_whole
from wsi_meta.pictures.picture_file import check_picture
from wsi_meta.pictures.survey_picture import draw_survey
from wsi_meta.slides.slide import Slide, open_slide
from wsi_meta.tiling.tissue import TissueMask
from wsi_meta.tiling.tissue_outlines import tissue_features
from wsi_meta.tiling.tissue_survey import TissueSurvey, survey_kinds

__all__ = ["survey_tissue"]

MASK_ENDINGS = (".geojson", ".png", ".tif", ".tiff")


def survey_tissue(
    slide: str | Path | Address | Slide,
    *,
    out: str | Path | None = None,
    picture: str | Path | None = None,
    tissue_mask: str | Path | None = None,
    mpp: float | None = None,
    reader: str = "auto",
    overwrite: bool = False,
) -> TissueSurvey:
    """Find the tissue that a scan would look at, and say what is left out and why.

    Parameters
    ----------
    slide : file, its address, or an open slide
    out : mask to write: outlines for QuPath (.geojson), or a picture that is 255 on tissue and 0 elsewhere (.png, .tif). All
        of them give the same mask again, bit for bit, as :func:`wsi_meta.scan`'s `tissue_mask`
    picture : picture to write (.png, .jpg, .pdf, ...): the slide with what is left out, the reasons in words and mm2
    tissue_mask : a mask, as :func:`wsi_meta.read_tissue_mask` reads it, to be looked at instead; not together with `out`
    mpp, reader : see :func:`wsi_meta.open_slide`; not for an open slide
    overwrite : replace these files if they exist

    Returns
    -------
    The mask that a scan would use, and of each of its pixels the kind: tissue, or why not.

    Raises
    ------
    SlideReadError, MissingMppError, OutputExistsError, OutputPathError
    DataError
        as :func:`wsi_meta.read_tissue_mask`.
    OptionsError
        for `out` together with `tissue_mask`.
    """
    if out is not None and tissue_mask is not None:
        raise OptionsError("--out writes the tissue that is found; with --tissue-mask only --picture can be written")
    path = local_path(slide.path if isinstance(slide, Slide) else slide)
    if out is not None:
        out = _check_mask(as_path("out", out), path, overwrite=overwrite)
    if picture is not None:
        picture = check_picture(as_path("picture", picture), path, overwrite=overwrite)
        refuse_input(picture, "the tissue mask", tissue_mask)
        refuse_one_name(out, picture, "--out and --picture")
    with nullcontext(slide) if isinstance(slide, Slide) else open_slide(slide, mpp=mpp, reader=reader) as opened:
        survey = survey_kinds(opened, tissue_mask)
        if out is not None:
            _write_mask(out, survey.tissue, opened, overwrite=overwrite)
        if picture is not None:
            draw_survey(survey, opened, picture, overwrite=overwrite)
    return survey


def _check_mask(out: Path, slide: Path | None, *, overwrite: bool) -> Path:
    """Return the name of the mask to write, checked: it is free or may be replaced, and no slide has it."""
    if out.suffix.lower() not in MASK_ENDINGS:
        raise OutputPathError(f"{out}: ending '{out.suffix}'; expected one of {', '.join(MASK_ENDINGS)}")
    refuse_input(out, "the slide", slide)
    if out.suffix.lower() == ".geojson":
        return check_output(out, overwrite=overwrite)
    return check_picture(out, slide, overwrite=overwrite)


def _write_mask(out: Path, tissue: TissueMask, slide: Slide, *, overwrite: bool) -> None:
    with written_whole(out, overwrite=overwrite) as partial:
        if out.suffix.lower() == ".geojson":
            partial.write_text(json.dumps(tissue_features(tissue.mask, tissue.downsample[0], slide)))
        elif out.suffix.lower() == ".png":
            from PIL import Image

            Image.fromarray(tissue.mask.astype(np.uint8) * np.uint8(255)).save(partial, format="png")
        else:
            import tifffile

            values = tissue.mask.astype(np.uint8) * np.uint8(255)
            tifffile.imwrite(partial, values, photometric="minisblack", compression="adobe_deflate", metadata=None)
