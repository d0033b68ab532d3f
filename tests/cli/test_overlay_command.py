"""``overlay`` finds its slide where ``view`` does, and says what it could not draw."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from slide_files import texture, write_slide
from stores import write_store

from wsi_meta.cli import main
from wsi_meta.errors import SlideReadError
from wsi_meta.pictures import overlay
from wsi_meta.slides.slide import open_slide
from wsi_meta.worklist.summary import add_row, summarise


@pytest.mark.parametrize("place", ["scans", ".", "slides", None])
def test_the_slide_is_looked_for(place: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "slides").mkdir()
    (tmp_path / "scans").mkdir()
    slide = write_slide(tmp_path / (place or "slides") / "a.tif", texture(96, 128))
    with open_slide(slide) as opened:
        fingerprint, mpp = opened.fingerprint(), opened.mpp
    store = write_store(tmp_path / "scans" / "a.zarr", np.zeros((3, 4), np.float32), mpp=mpp, slide=fingerprint)
    if place == "slides":  # as the folder's table says
        add_row(store.path.parent, summarise(slide, store), store.path)
    given: list[Any] = []
    drawn = overlay._draw

    def note_slide(*parts: Any) -> Any:
        given.append(parts[1])
        return drawn(*parts)

    monkeypatch.setattr(overlay, "_draw", note_slide)

    def draw(*words: str) -> Any:
        asked = ["overlay", str(store.path), "--out", str(tmp_path / "o.png"), "--max-side", "100", "--overwrite", *words]
        ended = CliRunner().invoke(main, asked)
        assert (ended.exit_code == 0) == ("--largest" not in words or place is not None), ended.output
        return ended

    def undecodable(*parts: Any) -> Any:
        if parts[1] is not None:
            raise SlideReadError("a.tif: nothing of it can be read")
        return note_slide(*parts)

    told = draw()
    assert (given[-1] is None, "a.tif: slide not found: map only" in told.stderr) == (place is None,) * 2
    assert "not found" not in draw("--slide", "none").stderr
    assert given[-1] is None
    draw("--slide", str(slide.parent))
    assert [part is None for part in given[-2:]] == [True, False], "it is looked for in the folder"
    with monkeypatch.context() as patch:
        patch.setattr(overlay, "_draw", undecodable)
        assert ("nothing of it can be read: map only" in draw().stderr) == (place is not None)
    largest = draw("--largest", "3")
    assert ("no lesion found: the whole slide is drawn" in largest.stdout) == (place is not None)
