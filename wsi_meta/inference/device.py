"""What device computes and in which precision: what was asked for, beside what this machine has."""

from __future__ import annotations

from wsi_meta.errors import DeviceError

__all__ = ["PRECISIONS", "resolve_device", "resolve_precision"]

PRECISIONS = ("auto", "fp32", "bf16", "int8")


def resolve_device(device: str = "auto") -> str:
    """Return the torch device to use: ``auto`` is the first CUDA GPU, else the CPU.

    Raises
    ------
    DeviceError
        when the device is unknown or not on this machine.
    """
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        kind = torch.device(device).type
    except RuntimeError:
        raise DeviceError(f"--device {device}: not a device; expected auto, cpu, cuda or cuda:N") from None
    if kind not in ("cpu", "cuda"):
        raise DeviceError(f"--device {device}: not supported; expected auto, cpu, cuda or cuda:N")
    if kind == "cpu":
        return "cpu"
    if not torch.cuda.is_available():
        raise DeviceError(f"--device {device}: no CUDA GPU is to be had on this machine; use --device cpu")
    if (torch.device(device).index or 0) >= (count := torch.cuda.device_count()):
        raise DeviceError(f"--device {device}: this machine has {count} CUDA GPU(s); expected cuda:0 to cuda:{count - 1}")
    return device


def resolve_precision(precision: str, device: str) -> str:
    """Return ``fp32``, ``bf16`` or ``int8``: ``auto`` is bf16 where `device` multiplies it in hardware, else fp32.

    On a CPU that means AVX512-BF16 or AMX; others only emulate bf16, several times slower than fp32. int8 is never chosen,
    only taken: it is faster still, and its probabilities differ more (docs/benchmarks.md).

    Raises
    ------
    DeviceError
        when `precision` is none of :data:`PRECISIONS`, or is int8 and `device` no CPU with VNNI.
    """
    import torch

    if precision not in PRECISIONS:
        raise DeviceError(f"--precision {precision}: not supported; expected one of {', '.join(PRECISIONS)}")
    if precision == "int8" and not (device == "cpu" and torch.cpu._is_vnni_supported()):
        raise DeviceError("--precision int8: needs a CPU with VNNI (AVX512-VNNI or AVX-VNNI); use --precision auto")
    if precision != "auto":
        return precision
    if device.startswith("cuda"):
        with torch.cuda.device(device):
            return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported() else "fp32"
