"""What is given to a public function and is of another kind is told in one line, and nothing is written."""

from __future__ import annotations

import copy
import inspect
import os
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from stores import write_store

import wsi_meta
from wsi_meta.errors import OVER_0, OptionsError, WsiMetaError, number, numbers, one_of, shown, truth, whole_number
from wsi_meta.outputs.paths import as_path

THING: Any = object()
LONG = "x" * 5000
WRONG: dict[str, tuple[Any, ...]] = {
    "truth": ("no", LONG, 1, None, float("nan"), np.ones(2)),
    "whole": ("1", LONG, 2.5, True, [], np.ones(2), THING),
    "number": ("1", LONG, float("nan"), True, 1j, [], np.ones(2), THING),
    "word": (5, LONG, [], np.ones(2), THING),
    "words": (5, [5], THING),
    "path": (3, 2.5, np.ones(2), np.array("a"), THING),
}
"""Of each kind of argument values that none of them may have."""
KINDS = {
    "bool": "truth",
    "int": "whole",
    "float": "number",
    "str": "word",
    "Sequence[str]": "words",
    "str | Iterable[str]": "words",
    "str | Sequence[str]": "words",
}
"""Kind of an argument by its annotation, without ``None``; what begins with ``str | Path`` is a path."""
ELSEWHERE = {
    **dict.fromkeys(("progress", "tell"), "told where it is first used"),
    **dict.fromkeys(("split", "host", "port", "scheduler"), "no word or number of a few"),
    **dict.fromkeys(("scan_slides.mpp", "scan_slides.reader", "scan_slides.tissue_mask"), "told in the row of each slide"),
    **dict.fromkeys(("preview_scans.mpp", "preview_scans.reader", "preview_scans.tissue_mask"), "told in each slide's row"),
}
"""Arguments that are not refused at once, and why."""
ENDINGS = {"find_lesions": "csv", "export": "geojson", "draw_overlay": "png", "survey_tissue": "png", "fit_score": "json"}
MODELS = ("calibrate", "import_model", "train")


@dataclass
class Place(os.PathLike[Any]):
    """A path of another kind."""

    text: str | bytes

    def __fspath__(self) -> str | bytes:
        return self.text


RIGHT: dict[str, tuple[Any, tuple[Callable[[Any], Any], ...]]] = {
    "truth": (False, (np.bool_,)),
    "whole": (1, (np.int64, np.uint32, np.array)),
    "number": (0.5, (np.float32, np.float64, np.array, Fraction)),
    "word": ("x", (np.str_,)),
    "words": ("x", (np.str_, lambda words: [words] if isinstance(words, str) else list(words))),
    "path": ("x", (np.str_, lambda path: Place(str(path)))),
}
"""Of each kind of argument a plain value, where it has no default, and what makes the same value of another kind."""
WORDS = {"form": "qupath", "pixels": "imagenet"}
"""Words of arguments that have no default."""
BEFORE_WORK = (
    "calibrate",
    "draw_overlay",
    "evaluate",
    "export_model",
    "import_model",
    "sample",
    "scan",
    "scan_slides",
    "train",
)
"""Functions that work long, and are given a file that is not there."""
NEVER_REFUSED = {"doctor": "looks at the machine for seconds", "view": "serves"}


def _arguments() -> list[tuple[str, str, str]]:
    """Return the arguments of public functions, by the functions' names, that are of these kinds."""
    found = []
    for name in dir(wsi_meta):
        if inspect.isfunction(function := getattr(wsi_meta, name)):
            for argument in inspect.signature(function).parameters.values():
                told = str(argument.annotation).removesuffix(" | None")
                kind = KINDS.get(told, "path" if told.startswith("str | Path") else "")
                if kind and not {argument.name, f"{name}.{argument.name}"} & ELSEWHERE.keys():
                    found.append((name, argument.name, kind))
    return found


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What functions need, by the names of their arguments."""
    folder = tmp_path_factory.mktemp("inputs")
    picture, maps, patches, manifest = (folder / name for name in ("s.png", "maps", "patches", "slides.csv"))
    manifest.write_text("slide,annotations\ns.png,\n")
    for place in (maps, patches / "0", patches / "1"):
        place.mkdir(parents=True)
    heatmap = write_store(maps / "h.zarr", np.full((4, 4), 0.9, np.float32))
    Image.fromarray(np.full((96, 96, 3), 255, np.uint8)).save(picture)
    for place in (patches / label / f"{each}.png" for label in "01" for each in range(2)):
        place.write_bytes(picture.read_bytes())
    return {
        **dict.fromkeys(("slide", "slides", "inputs", "path", "file", "labels", "nodes"), picture),
        "manifest": manifest,
        **dict.fromkeys(("data", "paths"), patches),
        **dict.fromkeys(("detections", "truth", "scans"), maps),
        "stores": heatmap.path,
        "heatmap": heatmap,
        "lesions": (),
        "model": None,
        "state": {},
        "card": wsi_meta.ModelCard(),
    }


@pytest.mark.parametrize(("name", "argument", "kind"), _arguments(), ids=lambda part: part)
def test_an_argument_of_another_kind_is_refused(
    tmp_path: Path, inputs: dict[str, Any], name: str, argument: str, kind: str
) -> None:
    function: Callable[..., Any] = getattr(wsi_meta, name)
    parameters = inspect.signature(function).parameters
    out = tmp_path / ("m.safetensors" if name in MODELS else f"o.{ENDINGS.get(name, 'csv')}")
    known = inputs | {"out": out, "folder": tmp_path / "demo"}
    if name.startswith("write_") or name == "save_model":
        known |= {"path": out, "detections": wsi_meta.to_detections(())}
    if name == "read_tissue_mask" or argument == "tissue_mask":
        known["slide"] = wsi_meta.Slide.from_array(np.zeros((9, 9, 3), np.uint8), mpp=1)
    needed = [one.name for one in parameters.values() if one.default is one.empty and one.kind is not one.VAR_KEYWORD]
    given = {one: known[one] for one in (*needed, *({"out"} & parameters.keys() if argument != "tissue_mask" else ()))}
    for value in WRONG[kind]:
        stores, named = [], given | {argument: value}
        if "stores" in named:
            stores.append(named.pop("stores"))
        with pytest.raises(WsiMetaError, match=r"expected|pass a number") as caught:
            function(*stores, **named)
        told = str(caught.value)
        assert len(told) < 400, told
        assert "\n" not in told
        found = (shown(value)[:40], str(value)[:40], type(value).__name__, str(getattr(value, "dtype", "")) or "array")
        assert kind == "words" or any(one in told for one in found)
    assert not any(tmp_path.iterdir())


def _needs(name: str, known: dict[str, Any]) -> dict[str, Any]:
    """Return what a function must be given, without what only some arguments need."""
    parameters = inspect.signature(getattr(wsi_meta, name)).parameters.values()
    return {one.name: known[one.name] for one in parameters if one.default is one.empty and one.kind is not one.VAR_KEYWORD}


@pytest.mark.parametrize(
    ("name", "argument", "kind"), [one for one in _arguments() if one[0] not in NEVER_REFUSED], ids=lambda part: part
)
def test_an_argument_of_a_kind_that_means_the_same_does_the_same(
    tmp_path: Path, inputs: dict[str, Any], name: str, argument: str, kind: str
) -> None:
    function: Callable[..., Any] = getattr(wsi_meta, name)
    parameters, told = inspect.signature(function).parameters, list[str]()
    without, same = RIGHT[kind]
    for make in (lambda value: value, *same):
        folder = tmp_path / str(len(told))
        folder.mkdir()
        out = folder / ("m.safetensors" if name in MODELS else f"o.{ENDINGS.get(name, 'csv')}")
        known = inputs | {"out": out, "folder": inputs["slide"]}
        if name.startswith("write_") or name == "save_model":
            known |= {"path": out, "detections": wsi_meta.to_detections(())}
        if name == "read_tissue_mask":
            known["slide"] = wsi_meta.Slide.from_array(np.zeros((9, 9, 3), np.uint8), mpp=1)
        given = _needs(name, known)
        if name in BEFORE_WORK:
            given[next(iter(parameters))] = folder / "nothing"
        if kind == "path":
            plain = given.get(argument) or known.get(argument) or without
            plain = str(getattr(plain, "path", plain))
        else:
            usual = parameters[argument].default
            plain = WORDS.get(argument, without) if usual in (None, inspect.Parameter.empty) else usual
        given[argument] = make(plain)
        stores = [given.pop("stores")] if "stores" in given else []
        try:
            function(*stores, **given)
            told.append("done")
        except WsiMetaError as error:
            told.append(f"{type(error).__name__} {error}".replace(str(folder), ""))
    assert set(told) == {told[0]}


def test_doors_return_plain_values() -> None:
    """What they let in is stored, and JSON holds no other."""
    fifth: tuple[Any, ...] = (0.2, np.float32(0.2), np.float64(0.2), np.float16(0.2), np.array(0.2, "f4"), Fraction(1, 5))
    for value in (*fifth, Decimal("0.2")):
        assert (number("n", value), type(number("n", value))) == (0.2, float), "by its decimals"
    wholes: tuple[Any, ...] = (3, np.int64(3), np.uint8(3), np.array(3))
    for value in wholes:
        assert [type(door("n", value)) for door in (number, whole_number)] == [int, int]
    assert [type(one) for one in numbers("n", np.array([1, 2], np.int32), 2, "two")] == [int, int]
    assert truth("t", np.bool_(True)) is True
    assert type(one_of("w", np.str_("a"), ("a", "b"))) is str
    assert as_path("p", Place("a")) == as_path("p", np.str_("a")) == Path("a")
    for nothing in (np.float32(0), np.float16(0), np.array(0.0), Fraction(0)):
        with pytest.raises(OptionsError, match=r"n .*0.*; expected over 0"):
            number("n", nothing, "over 0", least=OVER_0)
    for wrong in (np.array(True), np.complex64(1), np.array("1"), Decimal("sNaN"), Fraction(10**400), 10**400, 10**5000):
        with pytest.raises(OptionsError, match="expected a number"):
            number("n", wrong)
    for path in (Place(b"a"), Place(""), np.array([""]), np.ones(2)):
        with pytest.raises(OptionsError, match=r"p: is .*; expected a path"):
            as_path("p", path)


def test_a_word_for_no_does_not_replace_a_file(tmp_path: Path, inputs: dict[str, Any]) -> None:
    mine = tmp_path / "mine.csv"
    mine.write_text("mine")
    for word in ("no", "false", "0"):
        with pytest.raises(OptionsError, match=f"overwrite '{word}'; expected True or False"):
            wsi_meta.find_lesions(inputs["heatmap"], out=mine, overwrite=word)  # type: ignore[arg-type]
    assert mine.read_text() == "mine"
    wsi_meta.find_lesions(inputs["heatmap"], out=mine, overwrite=np.bool_(True))  # type: ignore[arg-type]
    assert mine.read_text() != "mine"


@pytest.mark.parametrize("ending", ["csv", "geojson"])
def test_a_generator_is_gone_through_once(tmp_path: Path, inputs: dict[str, Any], ending: str) -> None:
    lesions = wsi_meta.find_lesions(inputs["heatmap"])
    files = [tmp_path / f"{name}.{ending}" for name in "ab"]
    for file, given in zip(files, (lesions, (lesion for lesion in lesions)), strict=True):
        wsi_meta.write_lesions(file, given)  # type: ignore[arg-type]
    assert files[0].read_bytes() == files[1].read_bytes()
    points = wsi_meta.to_detections(lesion for lesion in lesions)  # type: ignore[arg-type]
    assert len(points.scores) == len(points.x) == len(points.y) == len(lesions) > 0
    picture = inputs["slide"]
    assert wsi_meta.find_slides(path for path in (picture,)) == wsi_meta.find_slides(picture)  # type: ignore[arg-type]
    for other in ("lesions", 3, (1, 2)):
        with pytest.raises(OptionsError, match=r"lesions: is of type .*; expected lesions, as find_lesions returns them"):
            wsi_meta.write_lesions(tmp_path / f"c.{ending}", other)  # type: ignore[arg-type]
    assert sorted(tmp_path.iterdir()) == files


@pytest.mark.parametrize(
    "values",
    [
        np.full((5, 5), 7.0),
        np.full((5, 5), -1.0),
        np.full((5, 5), np.inf),
        np.full((5, 5), 255, np.uint8),
        np.ones((5, 5), bool),
        np.full((3, 3), 1 + 2j),
        np.ones(5),
        np.ones((2, 3, 3)),
        np.array(0.5),
        np.array([["a"]]),
        np.full((2, 2), None),
    ],
    ids=str,
)
def test_what_is_no_map_has_no_score(values: Any) -> None:
    with pytest.raises(OptionsError, match=r"probability: .*; expected an array of cells \(rows, cols\)"):
        wsi_meta.score_slide(values)


def test_a_map_of_any_floating_numbers_has_a_score() -> None:
    for kind in (np.float16, np.float32, np.float64):
        assert wsi_meta.score_slide(np.array([[0, 1], [np.nan, 0]], kind)) == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    "columns",
    [
        ([0.5], [1], [2]),
        (np.array([np.nan]), np.array([1]), np.array([2])),
        (np.array([0.5]), np.array([-1]), np.array([2])),
        (np.array([0.5]), np.array([1, 2]), np.array([2])),
        (np.array([[0.5]]), np.array([[1]]), np.array([[2]])),
        (np.array(["a"]), np.array([1]), np.array([2])),
    ],
    ids=str,
)
def test_detections_that_cannot_be_read_again_are_not_made(columns: tuple[Any, Any, Any]) -> None:
    with pytest.raises(OptionsError, match=r"(scores|x|y): .*; expected arrays \(n,\) of finite numbers"):
        wsi_meta.Detections(*columns)


def test_what_a_slide_is_asked_for() -> None:
    slide = wsi_meta.Slide.from_array(np.zeros((9, 9, 3), np.uint8), mpp=1)
    calls: tuple[Callable[[Any], Any], ...] = (
        lambda wrong: slide.read_region(wrong, 0, 2, 2),
        lambda wrong: slide.read_region(0, 0, wrong, 2),
        lambda wrong: slide.read_region(0, 0, 2, 2, level=wrong),
        lambda wrong: slide.read_at(wrong, 0, 0, 2, 2),
        lambda wrong: slide.read_at(1, 0, 0, 2, wrong),
        slide.read_overview,
        lambda wrong: wsi_meta.Slide.from_array(np.zeros((9, 9, 3), np.uint8), mpp=wrong).mpp,
    )
    values: tuple[Any, ...] = ("1", None, True, [], 1j, np.ones(2), float("nan"), THING)
    for call in calls:
        for wrong in values if call is calls[0] else (*values, 1e9):
            with pytest.raises(WsiMetaError) as caught:
                call(wrong)
            assert "\n" not in str(caught.value)
    for pixels in ("x", None, [[1]], THING):
        with pytest.raises(OptionsError, match="pixels: is "):
            wsi_meta.Slide.from_array(pixels, mpp=1)  # type: ignore[arg-type]
    for name in (None, 5, b"x"):
        with pytest.raises(OptionsError, match="name: is "):
            wsi_meta.Slide.from_array(np.zeros((9, 9, 3), np.uint8), mpp=1, name=name)  # type: ignore[arg-type]


@pytest.mark.parametrize("send", [pickle.dumps, copy.deepcopy])
def test_an_open_slide_stays_where_it_is(send: Callable[[Any], Any]) -> None:
    with pytest.raises(OptionsError, match="array: an open slide cannot be copied or sent to another process; send its path"):
        send(wsi_meta.Slide.from_array(np.zeros((9, 9, 3), np.uint8), mpp=1))


def test_what_was_found_is_shown_on_one_short_line() -> None:
    assert shown("no") == "'no'"
    assert len(shown(LONG)) < 70
    assert "\n" not in shown(np.ones((3, 3)))
