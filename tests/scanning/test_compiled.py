"""Whether a scan compiles its network: as asked, as its store was begun, or by rule."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from slide_files import texture, write_slide
from tiny import Tiny

import wsi_meta.inference.fast_network
import wsi_meta.scanning.networks
from wsi_meta.errors import DeviceError, OptionsError, OutputExistsError
from wsi_meta.heatmaps.store import Heatmap
from wsi_meta.inference.fast_network import FastNetwork
from wsi_meta.inference.options import worth_compiling
from wsi_meta.models.card import ModelCard
from wsi_meta.models.model import Model
from wsi_meta.scanning.scan import scan

IN_BF16: dict[str, Any] = {"device": "cpu", "precision": "bf16", "tissue_mask": "none", "mode": "patch"}


@pytest.fixture
def tiny(tmp_path: Path) -> Model:
    return Model(Tiny().eval(), ModelCard(dense=True), "0" * 64, tmp_path / "tiny.safetensors")


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Stand in for the compiler: what would have been compiled runs as it is, and is counted."""
    made: list[str] = []

    def compile_network(network: FastNetwork, device: str, **_: int) -> FastNetwork:
        made.append(device)
        return network

    monkeypatch.setattr(wsi_meta.inference.fast_network, "compile_network", compile_network)
    return made


def repay_from(patches: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rule = partial(worth_compiling, patches_repay=patches)
    monkeypatch.setattr(wsi_meta.scanning.networks, "worth_compiling", rule)


def test_a_scan_goes_on_as_it_was_begun(
    tiny: Model, tmp_path: Path, compiled: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    slide, out = write_slide(tmp_path / "s.tif", texture(300, 300)), tmp_path / "h.zarr"
    settings: dict[str, Any] = {"model": tiny, **IN_BF16}
    monkeypatch.setenv("CXX", sys.executable)

    assert scan(slide, out, **settings).record.identity.compiled is False
    assert compiled == []
    repay_from(100, monkeypatch)
    assert scan(slide, out, **settings).record.identity.compiled is False, "the rule does not overrule the store"
    with pytest.raises(OutputExistsError, match="compiled is False, now True"):
        scan(slide, out, compiled="yes", **settings)
    assert scan(slide, out, overwrite=True, **settings).record.identity.compiled is True
    assert compiled == ["cpu"]
    assert scan(slide, out, **settings).finished
    assert compiled == ["cpu"], "a finished scan needs no network"
    with pytest.raises(OutputExistsError, match="compiled is True, now False"):
        scan(slide, out, compiled="no", **settings)


def test_without_a_compiler(
    tiny: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    slide = write_slide(tmp_path / "s.tif", texture(300, 300))
    settings: dict[str, Any] = {"model": tiny, **IN_BF16}
    repay_from(100, monkeypatch)
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))

    heatmap = scan(slide, tmp_path / "h.zarr", progress=True, **settings)

    assert heatmap.record.identity.compiled is False
    assert capsys.readouterr().err.count("no C++ compiler") == 1
    with pytest.raises(DeviceError, match="found no compiler"):
        scan(slide, tmp_path / "other.zarr", compiled="yes", **settings)
    assert not Heatmap.open(tmp_path / "other.zarr").finished
    with pytest.raises(OptionsError, match="expected one of"):
        scan(slide, tmp_path / "h.zarr", compiled="perhaps", **settings)
