"""How pixels become the input of the network: the one place that knows patch size, pixel size, mean and standard deviation.

Training and scanning call the same :meth:`Preprocessing.to_input`, so the same patch gives bit-equal input on both routes.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from wsi_meta.slides.pixel_size import COARSEST_MPP, FINEST_MPP

if TYPE_CHECKING:
    import torch

__all__ = ["Preprocessing"]

LARGEST_PATCH_PX = 4096
MPPS = (FINEST_MPP, COARSEST_MPP)
"""Micrometres per pixel that a microscope's picture can have."""
MEANS, STDS = (0.0, 1.0), (0.001, 10.0)
"""Limits for pixels scaled to 0..1. Values for pixels of 0..255 are beyond them."""


@dataclass(frozen=True)
class Preprocessing:
    """How pixels become model input. Part of every model's card.

    The defaults are PatchCamelyon's geometry (Veeling et al. 2018: 96 px patches of level 2 of Camelyon16, the label
    says whether the centre 32 px hold tumor) and the mean and deviation of ImageNet, which the trunk starts from.
    """

    patch_px: int = 96
    """Side of the patch that the network sees, pixels at `mpp`."""
    label_px: int = 32
    """Side of the centre square that a label describes, pixels at `mpp`."""
    mpp: float = 0.972
    """Micrometres per pixel of the patch."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Mean per channel (RGB) of pixels scaled to 0..1."""
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    """Standard deviation per channel (RGB) of pixels scaled to 0..1."""
    resampling: str = "area"
    """Filter that brings a finer pyramid level to `mpp`."""

    def to_input(self, images: torch.Tensor) -> torch.Tensor:
        """Turn pixels into model input.

        Parameters
        ----------
        images : uint8 tensor (n, height, width, 3), RGB, on any device

        Returns
        -------
        float32 tensor (n, 3, height, width) on the same device, in channels-last memory order.
        """
        import torch

        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[-1] != 3:
            raise TypeError(f"expected uint8 (n, height, width, 3), got {images.dtype} {tuple(images.shape)}")
        # filled on the device: copying three numbers there would make a GPU's stream wait
        mean, std = (
            torch.stack([torch.full((), value, dtype=torch.float32, device=images.device) for value in row])
            for row in (self.mean, self.std)
        )
        scale = 1 / (std * 255)
        return ((images.float() - mean * 255) * scale).permute(0, 3, 1, 2)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain JSON values."""
        return asdict(self) | {"mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Preprocessing:
        """Make one from :meth:`to_dict`'s fields.

        Raises
        ------
        KeyError, TypeError, ValueError
            when a field is missing, unknown or no number.
        """
        if unknown := set(fields) - set(cls.__dataclass_fields__):
            raise ValueError(f"unknown: {', '.join(sorted(unknown))}")
        numbers = {name: fields[name] for name in ("patch_px", "label_px", "mpp")}
        mean, std = (tuple(fields[name]) for name in ("mean", "std"))
        made = cls(**numbers, mean=mean, std=std, resampling=fields["resampling"])
        made.refuse_senseless()
        return made

    def refuse_senseless(self) -> None:
        """Raise a ValueError for values that give no input, or one that no network was trained on."""
        whole = all(type(side) is int and 0 < side <= LARGEST_PATCH_PX for side in (self.patch_px, self.label_px))
        numbers = all(type(value) in (int, float) for value in (*self.mean, *self.std, self.mpp))
        if not (whole and numbers and len(self.mean) == len(self.std) == 3 and self.resampling == "area"):
            raise ValueError(f"preprocessing not supported: {self.to_dict()}")
        for name, values, (least, most) in (("mpp", (self.mpp,), MPPS), ("mean", self.mean, MEANS), ("std", self.std, STDS)):
            if not all(least <= value <= most for value in values):
                raise ValueError(f"preprocessing not supported: {name} {values}; expected numbers from {least:g} to {most:g}")
