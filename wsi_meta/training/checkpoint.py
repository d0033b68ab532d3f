"""The checkpoint that a training writes after every epoch, so that it can be resumed after it was killed.

All random numbers of an epoch come from generators that are seeded with (seed, epoch), so a repeated epoch is the same epoch.
No generator's state is stored, and a resumed training ends with the same weights as one that was never interrupted.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsi_meta.datasets.layouts import Patches
from wsi_meta.errors import OptionsError, OutputExistsError, OutputPathError
from wsi_meta.files.process_settings import Setting, SharedSettings
from wsi_meta.models.card import ModelCard, read_card
from wsi_meta.models.preprocessing import Preprocessing
from wsi_meta.models.weights_file import refuse_damage
from wsi_meta.outputs.writing import written_whole
from wsi_meta.training.recipe import Recipe
from wsi_meta.words import first_line

if TYPE_CHECKING:
    import torch

    from wsi_meta.training.distributed import Processes
    from wsi_meta.training.initial_weights import Start

__all__ = [
    "Checkpoint",
    "check_alike",
    "check_model",
    "checkpoint_path",
    "differences",
    "identify",
    "read_checkpoint",
    "read_own_card",
    "write_checkpoint",
]

_checksums = SharedSettings()
"""Whether torch stores some of what it writes: without, damage would not be noticed."""
USUALLY = {"shown": Preprocessing().to_dict()}
"""What identities of older checkpoints lack, and what it was."""


@dataclass(frozen=True)
class Checkpoint:
    """A training between two epochs; before the end of the first one it only says that the training is not finished."""

    identity: dict[str, Any]
    """What :func:`identify` returned."""
    learner: dict[str, Any]
    """What ``Learner.state`` returned."""
    epochs: list[dict[str, Any]]
    """The rows of the history so far; where there are none, the training begins anew."""
    best_logits: torch.Tensor
    """Validation logits of the best epoch; shape (n,)."""


def checkpoint_path(out: Path) -> Path:
    """Return the path of the checkpoint of the model file `out`."""
    return out.with_suffix(".checkpoint")


def identify(
    recipe: Recipe, start: Start, train_set: Patches, valid_set: Patches, processes: Processes, precision: str
) -> dict[str, Any]:
    """Return what must not differ between a training and the one that resumes it; call it before the first step.

    Seeds give other random numbers on a GPU than on a CPU, so the kind of device is part of it.
    """
    state = start.network.state_dict()
    return {
        "recipe": asdict(recipe),
        "init": start.source,
        "initial weights": _digest({name: state[name] for name in start.loaded}),
        "training patches": train_set.fingerprint(),
        "training patches' pixels": train_set.pixels,
        "validation patches": valid_set.fingerprint(),
        "validation patches' pixels": valid_set.pixels,
        "processes": processes.count,
        "device": processes.device.partition(":")[0],
        "precision": precision,
        "shown": start.preprocessing.to_dict(),
    }


def write_checkpoint(out: Path, checkpoint: Checkpoint) -> None:
    """Write the checkpoint beside the model file `out`, whole or not at all.

    Raises
    ------
    OutputPathError
        when it cannot be written (a full disk, for example); the previous one is kept.
    """
    from torch import save
    from torch.serialization import get_crc32_options, set_crc32_options

    content = io.BytesIO()  # written to a file, torch's own error would not say why it failed
    with _checksums.holding(True, lambda: [Setting(get_crc32_options, set_crc32_options, True)]):
        save({"wsi_meta_checkpoint": 1} | vars(checkpoint), content)
    with written_whole(checkpoint_path(out)) as partial:
        partial.write_bytes(content.getvalue())


def read_checkpoint(out: Path, identity: dict[str, Any]) -> Checkpoint | None:
    """Read the checkpoint of the model file `out`; None where there is none.

    Parameters
    ----------
    identity : what :func:`identify` returned for the training that is to be resumed

    Raises
    ------
    OutputPathError
        when the file is damaged or not a checkpoint, or the model file is missing.
    OutputExistsError
        when it belongs to another training; the message names the difference.
    """
    path = checkpoint_path(out)
    if not path.exists():
        return None
    import torch

    try:
        refuse_damage(path)
        stored = torch.load(path, map_location="cpu", weights_only=True)
        if stored.pop("wsi_meta_checkpoint") != 1:
            raise ValueError("of a newer version")
        checkpoint = Checkpoint(**stored)
    except Exception as error:  # what a damaged file raises depends on the damage
        raise OutputPathError(f"{path}: not a checkpoint ({first_line(error)}); remove it and train from the start") from error
    if told := "; ".join(differences(USUALLY | checkpoint.identity, identity)):
        raise OutputExistsError(f"{path}: of another training: {told}; choose another --out, or --overwrite without --resume")
    if checkpoint.epochs and not out.exists():
        raise OutputPathError(f"{out}: missing, though {path.name} is of a training that wrote it; remove that and start anew")
    return checkpoint


def check_model(out: Path, best: int, epochs: int, described: dict[str, Any], preprocessing: Preprocessing) -> None:
    """Make sure that the model file `out` is the one that the checkpoint beside it goes on with.

    Parameters
    ----------
    best, epochs : the best epoch by the checkpoint, and how many it holds; a training that is killed between model and
        checkpoint has stored one more
    described, preprocessing : as for :func:`read_own_card`

    Raises
    ------
    ModelFileError
        when the file is damaged.
    OutputExistsError
        when it is of another training, or holds another epoch.
    """
    held = read_own_card(out, described, preprocessing).training.get("best_epoch")
    if held not in (best, epochs + 1):
        told = f"holds epoch {held}, and by {checkpoint_path(out).name} epoch {best} is the best so far"
        raise OutputExistsError(f"{out}: {told}; put that model back, or start anew with --overwrite without --resume")


def read_own_card(out: Path, described: dict[str, Any], preprocessing: Preprocessing) -> ModelCard:
    """Read the card of the model file `out`, which a training wrote that is asked for again.

    Parameters
    ----------
    described : recipe, initial weights and data, as the card records them
    preprocessing : what the network is shown

    Raises
    ------
    ModelFileError
        when the file is damaged.
    OutputExistsError
        when it is of another training; the message names the difference.
    """
    card = read_card(out)
    there, here = card.training | {"shown": card.preprocessing.to_dict()}, described | {"shown": preprocessing.to_dict()}
    if told := "; ".join(differences(there, here)):
        raise OutputExistsError(f"{out}: of another training: {told}; choose another --out, or --overwrite without --resume")
    return card


def differences(there: dict[str, Any], here: dict[str, Any], *, whole: bool = False) -> Iterator[str]:
    """Describe each setting that differs, with both values.

    Parameters
    ----------
    whole : what `there` does not hold differs, as in a recipe; else it is of an older version, and not compared
    """
    for name, value in here.items():
        other = there.get(name)
        if isinstance(value, dict) and isinstance(other, dict):
            yield from differences(other, value, whole=whole or name == "recipe")
        elif other != value and (whole or name in there):
            yield f"{name} was {str(other)[:40]}, now {str(value)[:40]}"


def check_alike(processes: Processes, identity: dict[str, Any], checkpoint: Checkpoint | None) -> None:
    """Make sure that all processes train the same: they would mix what differs, or wait for each other for ever.

    Parameters
    ----------
    identity, checkpoint : what :func:`identify` and :func:`read_checkpoint` returned in this process

    Raises
    ------
    OptionsError
        naming this process and the difference.
    """
    here = identity | {"epochs done": 0 if checkpoint is None else len(checkpoint.epochs)}
    if told := "; ".join(differences(processes.share(here), here)):
        raise OptionsError(f"process {processes.rank} was started otherwise: {told}; start all with the same options and files")


def _digest(tensors: Mapping[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
