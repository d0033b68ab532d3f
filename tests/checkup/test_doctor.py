"""``wsi-meta doctor``: what works is told as such, and each thing that is broken is named with what to do about it."""

from __future__ import annotations

import errno
import importlib
import json
import logging
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from distributed import LocalCluster
from fakes import DarknessPredictor
from json_output import result_of
from numpy.typing import NDArray

from wsi_meta.checkup import machine
from wsi_meta.checkup.decoders import decode, decoders
from wsi_meta.checkup.doctor import Looks, look_at_all
from wsi_meta.checkup.findings import Part, looked_at, without_names
from wsi_meta.checkup.folder import FileSystem, output_folder
from wsi_meta.checkup.self_test import offset, self_test
from wsi_meta.cli import main
from wsi_meta.errors import OutputPathError
from wsi_meta.files.locks import MARK, Holder
from wsi_meta.inference.predictor import Predictor
from wsi_meta.models.model import Model
from wsi_meta.scanning.cluster_client import look_at_cluster
from wsi_meta.versions import library_versions

NOTHING = Looks(
    versions=lambda: Part("versions", {}, ("all",)),
    output=lambda *_folders: Part("output", {}, ("well",)),
    self_test=lambda _scratch: Part("self_test", {}, ("well",)),
)
"""Looks that find nothing, at once."""


@pytest.fixture(scope="module")
def dense_model(thin_model: Model) -> Model:
    """A thin model that may scan in both modes."""
    return replace(thin_model, card=replace(thin_model.card, dense=True))


def darkness(model: Model, patches: torch.Tensor) -> NDArray[np.floating[Any]]:
    """What the stand-in must give."""
    return DarknessPredictor(model).predict_patches(patches)


class Inverted(DarknessPredictor):
    """Calls dark what is bright."""

    def look(self, patch: NDArray[np.uint8]) -> NDArray[np.floating[Any]]:
        return -5 * super().look(patch)


class OffByACell(DarknessPredictor):
    """Sees everything one cell further right than it is, where it predicts blocks."""

    def predict_block(self, pieces: Iterable[NDArray[np.uint8]], *values: Any) -> NDArray[np.float32]:
        return super().predict_block((np.roll(piece, 32, axis=1) for piece in pieces), *values)


class TestSelfTest:
    def test_maps_and_exports_of_both_modes_lie_where_they_should(self, dense_model: Model, tmp_path: Path) -> None:
        found = self_test(tmp_path, dense_model, DarknessPredictor, darkness)
        assert found.problems == ()
        assert [found.facts[mode]["reader"] for mode in ("patch", "dense")] == ["openslide", "direct"]
        for facts in (found.facts["patch"], found.facts["dense"]):
            assert (facts["off_cells"], facts["geojson_off_cells"], facts["csv_off_cells"]) == (0, 0, 0)
            assert set(facts["exports_off_cells"].values()) == {0}
            assert len(facts["exports_off_cells"]) >= 7
            assert facts["cells"] > 30
            assert facts["lesions"] > 0
            assert facts["store"] == "sound"
        assert sum("map off by 0 cells" in line for line in found.lines) == 2

    def test_a_network_of_patches_only(self, thin_model: Model, tmp_path: Path) -> None:
        found = self_test(tmp_path, thin_model, partial(Predictor, device="cpu", precision="fp32"))
        assert found.problems == ()
        assert found.facts["patch"]["difference"] < 1e-4
        assert "dense" not in found.facts

    def test_wrong_arithmetic_is_told(self, dense_model: Model, tmp_path: Path) -> None:
        problems = self_test(tmp_path, dense_model, Inverted, lambda *shown: 5 * darkness(*shown)).problems
        assert [problem.partition(" 0.")[0].removeprefix("self-test: ") for problem in problems if "float32" in problem] == [
            f"{mode} mode: probabilities" for mode in ("patch", "patch", "dense")
        ]

    def test_a_map_that_is_off_by_a_cell_is_told(self, dense_model: Model, tmp_path: Path) -> None:
        found = self_test(tmp_path, dense_model, OffByACell, darkness)
        assert found.facts["patch"]["off_cells"] == found.facts["dense"]["off_cells"] == 1
        problems = [problem for problem in found.problems if "the map off by 1 cells" in problem]
        assert [problem.partition(" mode")[0] for problem in problems] == ["self-test: patch", "self-test: dense"]
        assert any("probabilities" in problem for problem in found.problems)

    @pytest.mark.parametrize("moved", [(0, 0), (1, 0), (0, -1), (-2, 2)])
    def test_where_a_map_fits_best(self, moved: tuple[int, int]) -> None:
        expected = np.random.default_rng(0).random((8, 8))
        expected[0, 3:] = np.nan
        assert offset(np.roll(expected, moved, (0, 1)), expected) == moved

    def test_a_map_without_any_contrast_counts_as_in_place(self) -> None:
        assert offset(np.full((8, 8), 0.5), np.full((8, 8), 0.5)) == (0, 0)


class TestOutputFolder:
    def test_a_good_folder_is_left_as_it_was(self, tmp_path: Path) -> None:
        found = look_at_all(tmp_path, None, self_test=False, looks=replace(NOTHING, output=Looks().output))
        assert not [problem for problem in found.problems if "output" in problem]
        assert "locks and renames hold" in found.text
        assert list(tmp_path.iterdir()) == []

    def test_locks_that_two_can_hold_are_told(self, tmp_path: Path) -> None:
        found = output_folder(tmp_path, tmp_path, FileSystem(locked=lambda _path: nullcontext()))
        (problem,) = found.problems
        assert problem.startswith("output folder: two scans can hold the same output")
        assert "(--out)" in problem
        assert not found.facts["sound"]

    @pytest.mark.parametrize("name", ["rename", "put_in_place"])
    def test_renames_that_replace_are_told(self, name: str, tmp_path: Path) -> None:
        def clobber(new: Path, there: Path) -> None:
            shutil.rmtree(there, ignore_errors=True)
            new.rename(there)

        found = output_folder(tmp_path, tmp_path, FileSystem(**{name: clobber}))  # type: ignore[arg-type]
        (problem,) = found.problems
        assert "that is renamed replaces another one" in problem

    def test_renames_that_do_nothing_are_told(self, tmp_path: Path) -> None:
        look = partial(output_folder, tmp_path, tmp_path, FileSystem(rename=lambda *_paths: None))
        (problem,) = looked_at("output", look, "choose another --out", hidden=[tmp_path]).problems
        assert problem.startswith("output: FileNotFoundError")
        assert str(tmp_path) not in problem

    def test_no_folder(self, tmp_path: Path) -> None:
        with pytest.raises(OutputPathError, match="gone: no such folder"):
            look_at_all(tmp_path / "gone", None, self_test=False, looks=NOTHING)


class TestMachine:
    def test_all_is_told_that_needs_no_torch_where_torch_is_broken(self, tmp_path: Path) -> None:
        broken = tmp_path / "torch"
        broken.mkdir()
        (broken / "__init__.py").write_text("raise OSError('libcudart.so.12: cannot open shared object file')")
        code = (
            "import json, sys; sys.path.insert(0, sys.argv[1])\n"
            "from functools import partial; from importlib import import_module; from pathlib import Path\n"
            "from wsi_meta.checkup import doctor, machine\n"
            "load = lambda name: import_module(name) if name == 'torch' else None\n"  # the others take seconds
            "looks = doctor.Looks(versions=partial(machine.versions, load=load))\n"
            "print(json.dumps(doctor.look_at_all(Path(sys.argv[1]), None, self_test=True, looks=looks).to_dict()))\n"
        )
        command = [sys.executable, "-c", code, str(tmp_path)]
        found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        (problem,) = found["problems"]
        assert problem.startswith("torch cannot be imported (OSError: libcudart.so.12: cannot open shared object file); ")
        assert found["versions"]["torch"]
        assert found["decoders"]["JPEG"]["openslide"] == "reads"
        assert found["output"]["sound"]

    def test_libraries_that_fail_are_named(self) -> None:
        def load(name: str) -> object:
            if name in ("torch", "imagecodecs"):
                raise ImportError("no such symbol")
            if name == "matplotlib":
                raise OSError("set MPLCONFIGDIR") from FileNotFoundError(errno.ENOENT, "No usable temporary directory")
            return importlib

        found = machine.versions(load)
        assert list(found.facts["broken"]) == ["torch", "imagecodecs", "matplotlib"]
        assert ["install it again" in problem for problem in found.problems] == [True, True, False]
        assert found.facts["wsi-meta"] in found.lines[0]

    @pytest.mark.parametrize(
        ("flags", "told"),
        [
            ("flags\t: avx2 avx512f avx512_bf16 avx512_vnni amx_tile", ["AVX2", "AVX-512", "AVX512-BF16", "VNNI", "AMX"]),
            ("flags\t: sse2", []),
            ("Features\t: fp asimd", ["NEON"]),
            ("", None),
        ],
    )
    def test_instructions(self, flags: str, told: list[str] | None) -> None:
        found = machine.processor(f"processor: 0\nmodel name\t: Some CPU\n{flags}\n")
        assert found.facts["instructions"] == told
        assert found.lines[0].startswith("Some CPU; ")

    def test_too_little_memory(self) -> None:
        assert machine.memory("MemTotal: 64000000 kB\nMemAvailable: 32000000 kB\n").problems == ()
        (problem,) = machine.memory("MemTotal: 8000000 kB\nMemAvailable: 600000 kB\n").problems
        assert "0.6 GB free; a scan needs about 1.5 GB" in problem

    @pytest.mark.parametrize(
        ("has", "chosen", "why"),
        [
            ("avx512_bf16", "bf16", "AVX512-BF16"),
            ("amx_tile", "bf16", "has AMX"),
            ("vnni", "int8", "the model's card says"),
            ("avx2", "fp32", "neither AVX512-BF16 nor AMX"),
        ],
    )
    def test_why_a_precision_is_chosen(self, has: str, chosen: str, why: str) -> None:
        found = machine.precision("cpu", lambda name: name == has)
        assert found.facts["precision"] == chosen
        assert why in found.lines[0]
        assert ("needs a CPU with VNNI" in found.lines[1]) == (has != "vnni")

    def test_gpus(self) -> None:
        properties = SimpleNamespace(name="Some GPU", major=7, minor=5)
        cuda = SimpleNamespace(
            is_available=lambda: True,
            device_count=lambda: 2,
            device=lambda _number: nullcontext(),
            get_device_properties=lambda _number: properties,
            mem_get_info=lambda: (4e9, 16e9),
            is_bf16_supported=lambda including_emulation: including_emulation,
        )
        found = machine.gpus_of(SimpleNamespace(cuda=cuda))
        assert [gpu["device"] for gpu in found] == ["cuda:0", "cuda:1"]
        assert found[0] | {"device": ""} == {
            "device": "",
            "name": "Some GPU",
            "memory_gb": 16.0,
            "free_gb": 4.0,
            "capability": "7.5",
            "bf16": False,
        }


class TestDecoders:
    def test_what_scans_need_is_read_here(self, tmp_path: Path) -> None:
        found = decoders(tmp_path)
        assert found.problems == ()
        assert found.facts["JPEG"] == dict.fromkeys(("openslide", "direct", "tifffile"), "reads")
        assert found.facts["WebP"]["openslide"] == "does not read"

    def test_a_decoder_that_is_missing_and_one_that_is_wrong(self, tmp_path: Path) -> None:
        def read(path: Path, reader: str) -> NDArray[np.uint8]:
            if "jp2000" in path.name:
                raise OSError("no OpenJPEG")
            return decode(path, reader) // (2 if (path.name, reader) == ("jpeg.tif", "direct") else 1)

        problems = decoders(tmp_path, read).problems
        assert [problem.partition(";")[0] for problem in problems] == [
            "decoders: the direct reader does not read JPEG (wrong pixels)",
            "decoders: OpenSlide does not read JPEG 2000 (Aperio) (does not read)",
        ]


class TestCluster:
    def test_no_scheduler_answers(self) -> None:
        facts, line, problems = look_at_cluster("tcp://127.0.0.1:9", limit_s=0.3)
        assert not facts["reachable"]
        assert line == "no answer from the scheduler within 0.3 s"
        assert len(problems) == 1

    def test_what_is_no_address(self) -> None:
        facts, line, problems = look_at_cluster("foo", limit_s=0.3)
        assert facts == {"reachable": False}
        assert line.startswith("no address of a scheduler (missing port number in address ")
        assert problems == [f"{line}; give it as tcp://HOST:PORT"]

    def test_workers_and_their_versions(self) -> None:
        with LocalCluster(n_workers=0, processes=False, protocol="tcp://", dashboard_address=":0") as cluster:
            _, _, problems = look_at_cluster(cluster.scheduler_address)
            assert problems == ["no worker has joined; start some: dask worker ADDRESS"]
            cluster.scale(2)
            cluster.wait_for_workers(2)
            facts, line, problems = look_at_cluster(cluster.scheduler_address)
            assert (facts["workers"], problems) == (2, [])
            assert line.endswith("versions as here")
            others = {"wsi-meta": "0.1.0", "zarr": "2.18"}
            _, line, problems = look_at_cluster(cluster.scheduler_address, here=library_versions(("dask",)) | others)
        assert "versions differ" in line
        assert [problem.partition(" is ")[0] for problem in problems] == ["2 of 2 workers: wsi-meta", "2 of 2 workers: zarr"]
        assert "here 2.18; install the same everywhere" in problems[1]


class TestCommand:
    def test_it_prints_all_without_names_and_exits_with_0(self, tmp_path: Path) -> None:
        told, told_json = (
            CliRunner().invoke(main, ["doctor", "--no-self-test", "--out", str(tmp_path), *more]) for more in ((), ("--json",))
        )
        assert (told.exit_code, told_json.exit_code) == (0, 0), told.output
        for title in (
            "versions",
            "processor",
            "memory",
            "devices",
            "precision",
            "openslide",
            "decoders",
            "output",
            "self test",
        ):
            assert f"\n{title} " in f"\n{told.stdout}"
        assert len(told.stdout.splitlines()) < 30
        assert result_of(told_json.stdout)["problems"] == []
        for name in (str(tmp_path), str(Path.home()) + "/"):
            assert name not in told.output + told_json.output

    def test_what_is_broken_is_a_problem_and_the_rest_is_looked_at(self, tmp_path: Path) -> None:
        def fail(scratch: Path) -> Part:
            raise RuntimeError(f"{scratch}/heat.zarr: broken\nin two lines")

        found = look_at_all(tmp_path, "tcp://nowhere:1", self_test=True, looks=replace(NOTHING, self_test=fail, cluster=fail))  # type: ignore[arg-type]
        assert [problem.partition(":")[0] for problem in found.problems] == ["cluster", "self_test"]
        assert all("\n" not in problem and str(tmp_path) not in problem for problem in found.problems)
        assert found.problems[1].endswith("broken in two lines; install wsi-meta and its libraries again")

    def test_what_is_odd_on_purpose_is_not_told(self, tmp_path: Path) -> None:
        """Nor by the loggers of modules, whose records reach what listens to the package's."""
        told = list[logging.LogRecord]()

        class Listening(logging.Handler):
            def emit(self, record: logging.LogRecord) -> None:
                told.append(record)

        listening = Listening()

        def warn(_: Path) -> Part:
            for name in ("wsi_meta", "wsi_meta.exports.dicom"):
                logging.getLogger(name).warning("no DICOM slide was given")
            return Part("self_test", {}, ("well",))

        logging.getLogger("wsi_meta").addHandler(listening)
        try:
            look_at_all(tmp_path, None, self_test=True, looks=replace(NOTHING, self_test=warn))
        finally:
            logging.getLogger("wsi_meta").removeHandler(listening)
        assert told == []

    def test_the_self_test_goes_elsewhere_where_the_output_folder_is_broken(self, tmp_path: Path) -> None:
        places = []

        def note_place(scratch: Path) -> Part:
            places.append(scratch.parent)
            return Part("self_test", {}, ("well",))

        broken = Part("output", {}, ("broken",), ("output folder: broken",))
        for output in (NOTHING.output, lambda *_folders: broken):
            look_at_all(tmp_path, None, self_test=True, looks=replace(NOTHING, output=output, self_test=note_place))
        assert places[0] == tmp_path
        assert places[1] != tmp_path

    def test_no_room_for_temporary_files_is_a_problem_of_its_part(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*_: object) -> Part:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(tempfile, "gettempdir", fail)
        problems = look_at_all(tmp_path, None, self_test=True, looks=replace(NOTHING, self_test=fail)).problems
        assert [problem.partition(":")[0] for problem in problems] == ["decoders", "self_test"]
        assert problems[0].endswith("make room, or set TMPDIR to another one")
        assert problems[1].endswith("No space left on device; make room and run it again")

    def test_what_a_killed_one_left_goes(self, tmp_path: Path) -> None:
        left = tmp_path / ".wsi-meta.0123456789ab.doctor"
        left.mkdir()
        (left / MARK).write_text(json.dumps(asdict(replace(Holder.here(), start="of another boot"))))
        look_at_all(tmp_path, None, self_test=False, looks=NOTHING)
        assert list(tmp_path.iterdir()) == []

    def test_names_are_words(self, tmp_path: Path) -> None:
        assert without_names(f"{tmp_path}/a and {Path.home()}/b", tmp_path) == "FOLDER/a and ~/b"
