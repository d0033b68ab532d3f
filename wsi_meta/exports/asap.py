"""ASAP's XML: the outlines of lesions, to be looked at and corrected in ASAP."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree

import numpy as np

from wsi_meta.annotations.outlines import Outline
from wsi_meta.heatmaps.regions import Lesion

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["write_asap"]

GROUP, COLOUR = "Tumor", "#c80000"


def write_asap(lesions: Sequence[Lesion], file: Path, *, why_incomplete: str | None = None) -> None:
    """Write the outlines of lesions, level-0 pixels, in one group ``Tumor``; holes are joined to their ring by a cut.

    Parameters
    ----------
    why_incomplete : why there may be others, for a comment at the end, where ASAP has no place for it; None where there is none
    """
    root = ElementTree.Element("ASAP_Annotations")
    drawn = ElementTree.SubElement(root, "Annotations")
    for lesion in lesions:
        for part, outline in enumerate(lesion.outlines, 1):
            name = f"lesion {lesion.number}" + (f", part {part}" if len(lesion.outlines) > 1 else "")
            known = {"Name": name, "Type": "Polygon", "PartOfGroup": GROUP, "Color": COLOUR}
            corners = ElementTree.SubElement(ElementTree.SubElement(drawn, "Annotation", known), "Coordinates")
            for order, (x, y) in enumerate(one_ring(outline).tolist()):
                ElementTree.SubElement(corners, "Coordinate", {"Order": str(order), "X": repr(x), "Y": repr(y)})
    groups = ElementTree.SubElement(root, "AnnotationGroups")
    group = ElementTree.SubElement(groups, "Group", {"Name": GROUP, "PartOfGroup": "None", "Color": COLOUR})
    ElementTree.SubElement(group, "Attributes")
    if why_incomplete is not None:
        root.append(ElementTree.Comment(f" wsi-meta: {why_incomplete}; lesions may be missing or cut "))
    ElementTree.indent(root)
    ElementTree.ElementTree(root).write(file, encoding="utf-8", xml_declaration=True)


def one_ring(outline: Outline) -> NDArray[np.float64]:
    """Return a ring and its holes as one ring: from its last corner a cut without width leads to each hole and back.

    ASAP has no holes. A group of things to take off would also take off another lesion that lies in a hole. By the even-odd
    rule, which ASAP and :meth:`wsi_meta.Annotations.mask` fill by, a cut that is walked twice changes nothing.
    """
    ring = outline.vertices
    if not outline.holes:
        return ring
    back = ring[-1:]
    return np.vstack([ring, *(part for hole in outline.holes for part in (hole, hole[:1], back))])
