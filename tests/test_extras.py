"""A light installation: what needs an extra says so in one line, and all else works without any."""

from __future__ import annotations

import re
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from click.testing import CliRunner
from stores import write_store

from wsi_meta.checkup import machine
from wsi_meta.cli import main
from wsi_meta.errors import EXTRAS, DeviceError, SlideReadError, missing_libraries, require
from wsi_meta.files.address import Address
from wsi_meta.files.file_systems import refuse_without_cloud

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]


def distributions(requirements: list[str]) -> set[str]:
    return {requirement.partition(">=")[0].partition("[")[0] for requirement in requirements}


@pytest.fixture
def light(monkeypatch: pytest.MonkeyPatch) -> None:
    """No library of any extra can be imported."""
    for modules in EXTRAS.values():
        for module in modules:
            monkeypatch.setitem(sys.modules, module, None)


def test_extras_are_those_of_the_project() -> None:
    declared = PROJECT["optional-dependencies"]
    assert {name: distributions(declared[name]) for name in EXTRAS} == {
        name: set(modules.values()) for name, modules in EXTRAS.items()
    }
    assert declared["all"] == [f"wsi-meta[{','.join(sorted(EXTRAS))}]"]
    optional = {name for modules in EXTRAS.values() for name in modules.values()}
    assert not optional & distributions(PROJECT["dependencies"])


@pytest.mark.parametrize(
    ("words", "extra"),
    [
        ("train patches --init none --out m.safetensors", "train"),
        ("evaluate default patches", "train"),
        ("calibrate default patches --out m.safetensors", "train"),
        ("sample slides.csv --out sampled", "train"),
        ("fit-score scans --labels labels.csv --out score.json", "train"),
        ("import-model m.pth --data patches --out m.safetensors", "train"),
        ("export-model default --out zoo --format onnx", "onnx"),
        ("export {store} --out x.dcm", "dicom"),
        ("export {store} --out x.parquet", "parquet"),
    ],
)
@pytest.mark.usefixtures("light")
def test_a_command_without_its_extra_says_what_to_install(
    words: str, extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    store = write_store(tmp_path / "s.zarr", np.full((4, 5), 0.25, np.float32))
    run = CliRunner().invoke(main, words.format(store=store.path).split())
    assert run.exit_code == 1
    (line,) = run.stderr.splitlines()
    assert f" needs {' and '.join(EXTRAS[extra].values())}: pip install 'wsi-meta[{extra}]'" in line
    assert [path.name for path in tmp_path.iterdir()] == ["s.zarr"]


@pytest.mark.usefixtures("light")
def test_patches_in_hdf5_say_what_to_install(tmp_path: Path) -> None:
    from wsi_meta import open_patches

    for part in "xy":
        (tmp_path / f"camelyonpatch_level_2_split_train_{part}.h5").touch()
    with pytest.raises(DeviceError, match=r"^an HDF5 file needs h5py and scikit-learn: pip install 'wsi-meta\[train\]'$"):
        open_patches(tmp_path)


@pytest.mark.usefixtures("light")
def test_a_light_installation_is_no_problem_for_the_doctor() -> None:
    found = machine.versions(load=find_spec)
    assert found.problems == ()
    assert found.facts["missing"]["train"] == ["h5py", "scikit-learn"]
    assert found.lines[-1].startswith(
        "without the extras cloud, dicom, onnx, parquet, tensorboard, train: pip install 'wsi-meta[cloud,"
    )


def test_what_is_installed_is_not_required_again() -> None:
    require("train", "a test")
    assert missing_libraries("train") == []


def test_an_address_needs_what_its_kind_is_read_with(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "aiohttp", ModuleType("aiohttp"))  # made by hand: it does not say where it comes from
    refuse_without_cloud(Address("s3://there/a.tif"))
    with pytest.raises(SlideReadError, match=r"from an address needs aiohttp: pip install 'wsi-meta\[cloud\]'"):
        refuse_without_cloud(Address("https://there/a.tif"))


def test_the_page_on_installing_names_every_extra_and_every_command_once() -> None:
    page = (Path(__file__).parents[1] / "docs" / "install.md").read_text()
    rows = [row for row in page.splitlines() if row.startswith("| `pip install")]
    assert {name for row in rows for name in re.findall(r"\[(\w+)\]", row)} == {*EXTRAS, "all"}
    named = [name for row in rows[:2] for name in re.findall("`([^`]+)`", row.split("|")[2])]
    assert sorted(named) == sorted(main.commands)
