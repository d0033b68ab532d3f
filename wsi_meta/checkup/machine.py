"""Versions, processor, memory and GPUs, and the arithmetic that ``auto`` comes to here."""

from __future__ import annotations

import importlib
import os
import platform
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from wsi_meta.checkup.findings import Part, without_names
from wsi_meta.errors import EXTRAS, DeviceError, missing_libraries
from wsi_meta.outputs.paths import from_the_system
from wsi_meta.versions import library_versions
from wsi_meta.words import first_line

__all__ = ["GB", "devices", "gpus_of", "memory", "precision", "processor", "versions"]

GB = 10**9
NEEDED_GB = 1.5
"""Memory that a scan takes with the default model (docs/benchmarks.md)."""
LIBRARIES = {
    "torch": "torch",
    "numpy": "numpy",
    "scipy": "scipy",
    "scikit-image": "skimage",
    "scikit-learn": "sklearn",
    "zarr": "zarr",
    "dask": "dask",
    "distributed": "distributed",
    "openslide-python": "openslide",
    "openslide-bin": "",
    "tifffile": "tifffile",
    "imagecodecs": "imagecodecs",
    "simplejpeg": "simplejpeg",
    "pillow": "PIL",
    "safetensors": "safetensors",
    "matplotlib": "matplotlib",
    "h5py": "h5py",
}
"""Libraries by the names of their distributions, and what is imported of each; nothing where it may be absent."""
OPTIONAL = frozenset(name for libraries in EXTRAS.values() for name in libraries.values())
"""Those that only some commands need."""
INSTRUCTIONS = {
    "AVX2": ("avx2",),
    "AVX-512": ("avx512f",),
    "AVX512-BF16": ("avx512_bf16",),
    "VNNI": ("avx512_vnni", "avx_vnni"),
    "AMX": ("amx_tile",),
    "NEON": ("asimd", "neon"),
}
"""Those that decide how fast a network is, and Linux's flags for them; any one of these."""
CPU_INFO, MEMORY_INFO = Path("/proc/cpuinfo"), Path("/proc/meminfo")
CPU_LIMIT, MEMORY_LIMIT = Path("/sys/fs/cgroup/cpu.max"), Path("/sys/fs/cgroup/memory.max")
"""What a container, or a job of a cluster, may use."""


def versions(load: Callable[[str], object] = importlib.import_module) -> Part:
    """Tell the versions of everything, and which library cannot be imported. Needs none of them.

    Parameters
    ----------
    load : imports a module
    """
    found = library_versions(tuple(LIBRARIES))
    broken: dict[str, str] = {}
    remedies: dict[str, str] = {}
    for name, module in LIBRARIES.items():
        if module and (name in found or name not in OPTIONAL):
            try:
                load(module)
            except Exception as error:  # a broken library raises anything
                broken[name] = without_names(f"{type(error).__name__}: {first_line(error)}")
                of_the_machine = isinstance(error, OSError) and from_the_system(error).errno is not None
                remedies[name] = "" if of_the_machine else f"; install it again: pip install --force-reinstall {name}"
    system = f"{platform.system()} {platform.release()}, {platform.machine()}, {' '.join(platform.libc_ver())}".rstrip(", ")
    python = f"Python {found['python']} ({platform.python_implementation()})"
    names = [name for name in found if name in LIBRARIES]
    lines = [f"wsi-meta {found['wsi-meta']}, {python}, {system}"]
    lines += [", ".join(f"{name} {found[name]}" for name in names[at : at + 6]) for at in range(0, len(names), 6)]
    missing = {extra: missing_libraries(extra) for extra in EXTRAS}
    if absent := [extra for extra, names in missing.items() if names]:
        lines.append(f"without the extras {', '.join(absent)}: pip install 'wsi-meta[{','.join(absent)}]' brings them")
    problems = tuple(f"{name} cannot be imported ({told}){remedies[name]}" for name, told in broken.items())
    return Part("versions", {**found, "system": system, "broken": broken, "missing": missing}, tuple(lines), problems)


def processor(info: str | None = None) -> Part:
    """Tell the processor's name, the cores that may be used, and the instructions that matter.

    Parameters
    ----------
    info : text as Linux has it in /proc/cpuinfo; None reads that
    """
    info = _read(CPU_INFO) if info is None else info
    fields = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in info.splitlines())}
    flags = set((fields.get("flags") or fields.get("features") or "").split())
    has = [name for name, signs in INSTRUCTIONS.items() if flags & set(signs)] if flags else None
    name = fields.get("model name") or platform.processor() or platform.machine()
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota, _, period = _read(CPU_LIMIT).partition(" ")
    limit = int(quota) / int(period) if quota.isdigit() and period.strip().isdigit() else None
    facts = {"name": name, "cores": os.cpu_count(), "usable_cores": usable, "core_limit": limit, "instructions": has}
    told = f"{name}; {usable} of {os.cpu_count()} cores usable" + (f", limited to the time of {limit:g}" if limit else "")
    return Part("processor", facts, (f"{told}; {'instructions unknown' if has is None else ', '.join(has) or 'no AVX2'}",))


def memory(info: str | None = None) -> Part:
    """Tell how much memory there is and how much of it is free.

    Parameters
    ----------
    info : text as Linux has it in /proc/meminfo; None reads that
    """
    info = _read(MEMORY_INFO) if info is None else info
    kibibytes = {name: int(value.split()[0]) for name, _, value in (line.partition(":") for line in info.splitlines()) if value}
    total, free = (kibibytes[name] * 1024 / GB if name in kibibytes else None for name in ("MemTotal", "MemAvailable"))
    limit = _read(MEMORY_LIMIT)
    limit_gb = int(limit) / GB if limit.isdigit() else None
    told = [f"{value:.1f} GB {word}" for value, word in ((total, "in all"), (free, "free"), (limit_gb, "allowed")) if value]
    problems: tuple[str, ...] = ()
    least = min((value for value in (free, limit_gb) if value is not None), default=NEEDED_GB)
    if least < NEEDED_GB:
        problems = (f"memory: {least:.1f} GB free; a scan needs about {NEEDED_GB} GB; close other programs",)
    return Part("memory", {"total_gb": total, "free_gb": free, "limit_gb": limit_gb}, (", ".join(told) or "unknown",), problems)


def devices() -> Part:
    """Tell the GPUs that torch sees and what each can do, and why it sees none where there seems to be one."""
    import torch

    found = gpus_of(torch)
    facts = {"gpus": found, "cuda": torch.version.cuda, "threads": torch.get_num_threads()}
    lines = tuple(
        f"{gpu['device']}: {gpu['name']}, {gpu['memory_gb']:.1f} GB ({gpu['free_gb']:.1f} free), capability "
        f"{gpu['capability']}, {'bf16' if gpu['bf16'] else 'no bf16'}"
        for gpu in found
    )
    if not found:
        driver = Path("/dev/nvidia0").exists() or shutil.which("nvidia-smi") is not None
        built = f"torch is built for CUDA {torch.version.cuda}" if torch.version.cuda else "this torch is built without CUDA"
        seen = f", though there is an NVIDIA driver: {built}; see pytorch.org for one that fits" if driver else ""
        lines = (f"no GPU that torch can use{seen}; the CPU computes, {torch.get_num_threads()} threads",)
    return Part("devices", facts, lines)


def gpus_of(torch: Any) -> list[dict[str, Any]]:
    """Return what each GPU is that torch sees: plain JSON values; empty where it sees none.

    Parameters
    ----------
    torch : the module
    """
    return [_gpu(torch.cuda, number) for number in range(torch.cuda.device_count() if torch.cuda.is_available() else 0)]


def _gpu(cuda: Any, number: int) -> dict[str, Any]:
    properties = cuda.get_device_properties(number)
    with cuda.device(number):
        free, total = cuda.mem_get_info()
        bf16 = bool(cuda.is_bf16_supported(including_emulation=False))
    return {
        "device": f"cuda:{number}",
        "name": properties.name,
        "memory_gb": total / GB,
        "free_gb": free / GB,
        "capability": f"{properties.major}.{properties.minor}",
        "bf16": bf16,
    }


def precision(device: str = "auto", supports: Callable[[str], bool] | None = None) -> Part:
    """Tell which device and precision ``auto`` chooses for the default model, and why; and whether int8 can be chosen.

    Parameters
    ----------
    device : ``auto``, or one to choose the precision for
    supports : tells which instructions the CPU has; None asks torch
    """
    from wsi_meta.inference.device import cpu_supports, resolve_device, resolve_precision
    from wsi_meta.models.card import read_card
    from wsi_meta.models.model import model_path

    supports = supports or cpu_supports
    device = resolve_device(device)
    chosen = resolve_precision("auto", device, int8_agrees=read_card(model_path(None)).prefers_int8, supports=supports)
    if device != "cpu":
        why = "the GPU multiplies bf16 in hardware" if chosen == "bf16" else "the GPU only emulates bf16"
    elif chosen == "int8":
        why = "the CPU has VNNI, and the model's card says that int8 agrees with fp32"
    elif chosen == "bf16":
        why = f"the CPU has {'AVX512-BF16' if supports('avx512_bf16') else 'AMX'}, which multiplies bf16 in hardware"
    else:
        why = "the CPU has neither AVX512-BF16 nor AMX, and without them bf16 is several times slower"
    try:
        resolve_precision("int8", device, supports=supports)
        int8 = "possible"
    except DeviceError as error:
        int8 = f"not possible: it {str(error).partition(': ')[2].partition(';')[0]}"
    facts = {"device": device, "precision": chosen, "why": why, "int8": int8}
    return Part("precision", facts, (f"auto is {device} in {chosen} with the default model: {why}", f"int8 is {int8}"))


def _read(path: Path) -> str:
    """Return a file's text; nothing where there is no such file."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""
