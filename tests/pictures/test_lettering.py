from __future__ import annotations

import logging
import warnings

import pytest
from matplotlib.figure import Figure

from wsi_meta.pictures.lettering import FAMILY, Lettering, break_lines, letter, text_width

NO_FONT = "\U000e0041"
"""A tag, which has no shape."""


@pytest.mark.parametrize("name", ["node", "Ωμέγα", "Привет", "مرحبا", "שלום", "naïve-Łódź_ß"])
def test_the_usual_font_has_many_scripts(name: str, caplog: pytest.LogCaptureFixture) -> None:
    assert letter(name) == Lettering(name, (FAMILY,))
    assert not caplog.records


def test_another_installed_font_is_found(caplog: pytest.LogCaptureFixture) -> None:
    found = letter("slide の 1")
    assert found.text == "slide の 1"
    assert found.families[0] == FAMILY
    assert len(found.families) == 2
    assert not caplog.records


def test_what_no_font_has_is_escaped_and_told(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    unknown = "\u4e00\u3400\U00020000" * 3  # no font that comes with matplotlib has any of these
    found = letter(f"slide-{unknown}.tif", "slide.tif")
    for char in set(unknown):
        escape = char.encode("unicode_escape").decode()
        assert (char in found.text) != (escape in found.text)
    if found.text.isascii():
        (record,) = caplog.records
        assert record.getMessage() == (
            "slide.tif: no installed font has 3 of its characters, drawn as \\U00020000, \\u3400, \\u4e00; "
            "install a font that has them, such as Noto Sans CJK"
        )


@pytest.mark.parametrize("name", ["मराठी", "の", "😀", "一二三", "\ue000", "e\u0301", "a\u200db", "\u202eabc", "ﷺ" * 40])
def test_no_name_makes_the_drawing_warn_or_fail(name: str) -> None:
    found = letter(name)
    figure = Figure(figsize=(2, 1))
    figure.text(0, 0, "\n".join(break_lines(found, 12, 1.8)), fontfamily=list(found.families), parse_math=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure.canvas.draw()


def test_lines_are_as_long_as_there_is_room() -> None:
    name = "a-very-long-name_of_a_slide" * 6
    lines = break_lines(Lettering(name), 12, 3.0)
    assert "".join(lines) == name
    widths = [text_width(line, 12) for line in lines]
    assert max(widths) <= 3.0
    assert min(widths[:-1]) > 1.5
    assert break_lines(Lettering("x" * 50), 12, 0.01) == ["x"] * 50, "a character a line at least"
    assert break_lines(Lettering("node: score 0.913"), 12, 9) == ["node: score 0.913"]
    assert text_width("WWWW", 24) == pytest.approx(2 * text_width("WWWW", 12), rel=0.02)
