"""Networks as TorchScript: written for WSInfer, and read with care."""

from __future__ import annotations

import io
import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from wsi_meta.errors import ModelFileError
from wsi_meta.files.process_settings import no_warnings
from wsi_meta.models.weights_file import CODE, refuse_damage
from wsi_meta.words import first_line

__all__ = ["load_script", "script_logits", "write_script"]

BEYOND_NUMBERS = re.compile(
    rb"__setstate__|\btorch\.(save|from_file)\b|\bops\.(?!prim\b|aten\b)\w+\.\w+|\bops\.aten\.(save|from_file)\b"
)
"""What a program must not do: run when it is opened, reach files, or call operators that are not torch's own."""
DEPRECATED = ".*torch.jit"
"""How torch warns of TorchScript: WSInfer takes nothing else."""
LARGEST_CODE = 1 << 26
"""Bytes of program that are looked through."""


def load_script(path: Path) -> Any:
    """Load a TorchScript on the CPU, in evaluation mode.

    A script is a program of tensors. Before it is loaded its text is searched for what reaches beyond them.

    Raises
    ------
    ModelFileError
        when it is damaged, or its program does more than compute.
    """
    try:
        refuse_damage(path)
        with zipfile.ZipFile(path) as archive:
            files = [entry for entry in archive.infolist() if CODE.fullmatch(entry.filename)]
            if sum(entry.file_size for entry in files) > LARGEST_CODE:
                raise ModelFileError(f"{path}: its program is longer than {LARGEST_CODE >> 20} MB; expected that of a ResNet50")
            found = next(filter(None, (BEYOND_NUMBERS.search(archive.read(entry)) for entry in files)), None)
        if found is not None:
            raise ModelFileError(
                f"{path}: its program calls '{found[0].decode()}'; expected a network that only computes, by torch's operators"
            )
        with no_warnings(DEPRECATED):
            return torch.jit.load(str(path), map_location="cpu").eval()
    except ModelFileError:
        raise
    except Exception as error:  # what a damaged file raises depends on the damage
        raise ModelFileError(f"{path}: a TorchScript that cannot be loaded ({first_line(error)})") from error


def script_logits(script: Any, inputs: torch.Tensor, source: object) -> torch.Tensor:
    """Return what a script gives for model input, float32 (n, 1) or (n, 2).

    Raises
    ------
    ModelFileError
        when it fails, or gives something else.
    """
    try:
        unoptimised = torch.jit.optimized_execution(False)  # type: ignore[attr-defined]  # optimising outlasts a few runs
        with torch.inference_mode(), no_warnings(DEPRECATED), unoptimised:
            found = script(inputs.contiguous())
    except Exception as error:  # whatever the program of a script raises
        raise ModelFileError(f"{source}: fails on patches {tuple(inputs.shape)} ({first_line(error)})") from error
    if isinstance(found, torch.Tensor) and found.shape == (len(inputs),):
        found = found[:, None]
    if not isinstance(found, torch.Tensor) or found.shape not in ((len(inputs), 1), (len(inputs), 2)):
        told = tuple(found.shape) if isinstance(found, torch.Tensor) else type(found).__name__
        raise ModelFileError(f"{source}: returns {told} for {len(inputs)} patches; expected one or two logits for each")
    return found.float()


def write_script(path: Path, network: nn.Module, patch_px: int) -> None:
    """Write a network as TorchScript, by a trace: it takes float32 (n, 3, patch_px, patch_px), for any n."""
    written = io.BytesIO()  # torch's own writer ends the process where the disk is full
    with torch.no_grad(), no_warnings(DEPRECATED):
        torch.jit.save(
            torch.jit.trace(network, torch.zeros((2, 3, patch_px, patch_px), dtype=torch.float32), check_trace=False), written
        )
    path.write_bytes(written.getvalue())
