"""Labelled patches before a training: which of them to validate on, and checks of all.

Every patch is read once. This finds files that do not decode, Kaggle's ids that do not match their pixels, and patches whose
pixels are both in training and in validation: validation of a model that was trained on them would be too favourable.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from wsi_meta.datasets.batches import batches_of
from wsi_meta.datasets.patches import Patches, content_of, contents_of, join
from wsi_meta.errors import DataError, OptionsError
from wsi_meta.progress import progress_bar

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["CheckedPatches", "check_patches", "split_for_training"]

logger = logging.getLogger(__name__)

LEAST_HELD = 2
"""Patches of each class to validate on at least: one to calibrate on and one to judge."""
BATCH = 256
"""Number of patches that a process reads at a time."""


@dataclass(frozen=True)
class CheckedPatches:
    """Patches that passed :func:`check_patches`."""

    train: Patches
    valid: Patches
    test: Patches | None
    summary: str
    """One line for people: numbers, classes, slides and duplicates."""


def split_for_training(
    data: dict[str, Patches], *, fraction: float = 0.1, seed: int = 0, tell: bool = True
) -> tuple[Patches, Patches]:
    """Return training and validation patches: the data's own split, else a seeded one, of patients where slides are known.

    Patches whose slides are not known are held out one by one.

    Parameters
    ----------
    data : as :func:`open_patches` gives it
    fraction : share of each class that goes to validation where the data have no split of their own; of patients (or, where
        these are too few, slides), as many as hold that share
    seed : of the shuffle
    tell : warn of patches whose slides are not known

    Raises
    ------
    DataError
        when there is no train split, or it has too few patches of a class to hold some out.
    """
    if "train" not in data:
        place = next(iter(data.values())).files[0].parent
        raise DataError(f"{place}: only {', '.join(data)} patches; expected a train split")
    train = data["train"]
    if "valid" in data:
        return train, data["valid"]
    if (counts := np.bincount(train.labels, minlength=2)).min() <= LEAST_HELD:
        shared = os.path.commonpath([train.root / path.parent for path in (train.files[0], train.files[-1])])
        raise DataError(
            f"{shared}: {counts[1]} tumor and {counts[0]} normal patches, and no validation split; "
            f"expected at least {LEAST_HELD + 1} of each, {LEAST_HELD} of them to validate on: add patches"
        )
    held_out = _hold_out(train, fraction, seed)
    unknown = held_out if train.slides is None else held_out & (train.slides == "")
    if tell and unknown.any():
        told = "the slides of %d of the %d patches held out for validation are not known; its figures then flatter"
        logger.warning(told, int(unknown.sum()), int(held_out.sum()))
    return train.select(np.flatnonzero(~held_out)), train.select(np.flatnonzero(held_out))


def _hold_out(train: Patches, fraction: float, seed: int) -> NDArray[np.bool_]:
    """Return which patches to hold out, bool (n,)."""
    held_out, alone = np.zeros(len(train), bool), np.arange(len(train))
    if train.slides is not None and train.patients is not None:
        known = np.flatnonzero(train.slides != "")
        found = (_hold_groups(groups[known], train.labels[known], fraction, seed) for groups in (train.patients, train.slides))
        if (held := next((held for held in found if held is not None), None)) is not None:
            held_out[known], alone = held, np.flatnonzero(train.slides == "")
    order = alone[np.random.default_rng(seed).permutation(len(alone))]
    for label in (0, 1):
        of_class = order[train.labels[order] == label]
        held_out[of_class[: max(0, min(max(LEAST_HELD, round(fraction * len(of_class))), len(of_class) - 1))]] = True
    return held_out


def _hold_groups(groups: NDArray[np.str_], labels: NDArray[np.uint8], fraction: float, seed: int) -> NDArray[np.bool_] | None:
    """Return which patches to hold out, bool (n,): all of some patients or slides. At least half of each class stays.

    Neighbouring patches share pixels and slides of a patient resemble each other, so a validation on patches of those that were
    trained on would be too favourable. None where the groups are too few for that.
    """
    names, of = np.unique(groups, return_inverse=True)
    counts = np.stack([np.bincount(of[labels == label], minlength=len(names)) for label in (0, 1)])
    total, held = counts.sum(1), np.zeros(len(names), bool)
    for group in np.random.default_rng(seed).permutation(len(names)):
        lacking = counts[:, held].sum(1) < np.maximum(LEAST_HELD, np.round(fraction * total))
        stays = counts[:, ~held].sum(1) - counts[:, group]
        held[group] = (counts[lacking, group] > 0).any() and (2 * stays >= total).all()
    return np.asarray(held[of]) if (counts[:, held].sum(1) >= LEAST_HELD).all() else None


def check_patches(
    train: Patches,
    valid: Patches,
    test: Patches | None = None,
    *,
    duplicates: str = "refuse",
    workers: int = 0,
    progress: bool = False,
) -> CheckedPatches:
    """Read all patches once and check that a training can use them.

    Two patches are the same when the SHA-1 of their decoded RGB bytes is.

    Parameters
    ----------
    train, valid : patches to train on and to validate on
    test : patches to test on later, which are only compared with the others; None where there are none
    duplicates : ``refuse`` training patches that are also in `valid`, or ``drop`` them from training
    workers : processes that decode patches; 0 decodes in this one
    progress : show a bar on stderr

    Returns
    -------
    The patches, with the digest of their pixels, and a summary of them. Patches that are in a split more than once are kept
    and counted. A warning tells of pixels with both labels, and of those in `test` that are elsewhere, too.

    Raises
    ------
    DataError
        when patches cannot be read (the message names the first and counts all), when there is only one class, or when a
        patch is in both and `duplicates` is ``refuse``.
    OptionsError
        for another value of `duplicates`.
    """
    if duplicates not in ("refuse", "drop"):
        raise OptionsError(f"duplicates '{duplicates}'; expected 'refuse' or 'drop'")
    train.check_classes()
    valid.check_classes()
    everything = join([train, valid, *([] if test is None else [test])])
    contents, both = _read_contents(everything, workers, progress=progress), len(train) + len(valid)
    of_train, of_valid = contents[: len(train)], contents[len(train) : both]
    test = None if test is None else replace(test, contents=contents_of(contents[both:]))
    in_valid = {content: index for index, content in enumerate(of_valid)}
    shared = [index for index, content in enumerate(of_train) if content in in_valid]
    if shared and duplicates == "refuse":
        first = shared[0]
        raise DataError(
            f"{train.files[first].parent / train.name(first)}: the same pixels as validation's "
            f"{valid.name(in_valid[of_train[first]])}, and {len(shared)} such in all; expected no training patch in "
            "validation; --drop-duplicates drops them from training"
        )
    _warn_of_pixels(everything, contents, both)
    if shared:
        kept = np.setdiff1d(np.arange(len(train)), shared)
        train, of_train = train.select(kept), [of_train[index] for index in kept]
        train.check_classes()
    dropped = f"{len(shared)} that are also in validation dropped from training" if shared else "no patch in both"
    parts = [f"{_describe(train, 'training')}, {_describe(valid, 'validation')}", dropped]
    parts += [
        *_compare_slides(train, valid),
        *_count_repeats(train, of_train, "training"),
        *_count_repeats(valid, of_valid, "validation"),
    ]
    train, valid = replace(train, contents=contents_of(of_train)), replace(valid, contents=contents_of(of_valid))
    return CheckedPatches(train, valid, test, "; ".join(parts))


def _describe(patches: Patches, what: str) -> str:
    tumor = int(patches.labels.sum())
    names = set() if patches.slides is None else set(patches.slides.tolist())
    slides = f" of {len(names - {''})} slides{' and unknown ones' * ('' in names)}" if names else ""
    return f"{len(patches)} {what} patches{slides} ({tumor} tumor, {100 * tumor / len(patches):.0f} %)"


def _compare_slides(train: Patches, valid: Patches) -> list[str]:
    slides, patients = _shared(train.slides, valid.slides), _shared(train.patients, valid.patients)
    if slides is None or patients is None:
        return []
    known = "known " if train.groups is None or valid.groups is None else ""
    told = f"{slides or 'no'} {known}slide{'s' if slides > 1 else ''}"
    if patients != slides:
        told += f" and {patients} patient{'s' if patients > 1 else ''}"
    if patients:
        logger.warning("patches of %s are both in training and in validation, whose figures then flatter", told)
    return [f"{told} in both"]


def _shared(ours: NDArray[np.str_] | None, theirs: NDArray[np.str_] | None) -> int | None:
    """Return how many names are among both, empty ones aside; None where those of one are not known."""
    return None if ours is None or theirs is None else len(set(ours.tolist()) & set(theirs.tolist()) - {""})


def _warn_of_pixels(patches: Patches, contents: Sequence[bytes], tested: int) -> None:
    """Warn of pixels with both labels, and of patches from `tested` on, of the test split, that are also before it."""
    first: dict[bytes, int] = {}
    places = [first.setdefault(content, place) for place, content in enumerate(contents)]
    contrary = [place for place, one in enumerate(places) if patches.labels[place] != patches.labels[one]]
    shared = [place for place in range(tested, len(places)) if places[place] < tested]
    for found, told in (
        (contrary, "patches with the pixels of another one, and the other label"),
        (shared, "patches of the test split with the pixels of one in training or validation, so that its figures flatter"),
    ):
        if found:
            one, other = (patches.files[place].parent / patches.name(place) for place in (found[0], places[found[0]]))
            logger.warning("%s: %d, first %s, of %s", told, len(found), one, other)


def _count_repeats(patches: Patches, contents: Sequence[bytes], split: str) -> list[str]:
    """Describe how many patches are repeated within a split, and how many of them have both labels."""
    labels: dict[bytes, set[int]] = {}
    for content, label in zip(contents, patches.labels.tolist(), strict=True):
        labels.setdefault(content, set()).add(label)
    if len(labels) == len(patches):
        return []
    contrary = sum(len(found) > 1 for found in labels.values())
    return [f"{len(patches) - len(labels)} repeated within {split}, {contrary or 'none'} with both labels"]


class _Contents:
    """The SHA-1 of each patch's pixels, and why it cannot be read; one of the two is empty."""

    def __init__(self, patches: Patches) -> None:
        self.patches = patches

    def __len__(self) -> int:
        return len(self.patches)

    def __getitem__(self, index: int) -> tuple[bytes, str]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[bytes, str]]:
        try:
            patches = self.patches.read_many(indices)
        except DataError as error:
            if len(indices) == 1:
                return [(b"", str(error))]
            return [self[index] for index in indices]
        return [(content_of(patch), "") for patch in patches]


def _read_contents(patches: Patches, workers: int, *, progress: bool) -> list[bytes]:
    """Read all patches and return the SHA-1 of each one's pixels."""
    import torch
    from torch.utils.data import DataLoader

    generator = torch.Generator()  # else the seeds of the workers are drawn from the global one
    told_of: Any = _Contents(patches)
    loader = DataLoader(told_of, batch_size=BATCH, num_workers=workers, collate_fn=list, generator=generator)
    contents: list[bytes] = []
    failures: list[str] = []
    with progress_bar(len(patches), "patches", "checking", enabled=progress) as bar:
        for batch in batches_of(loader):
            contents += [content for content, _ in batch]
            failures += [failure for _, failure in batch if failure]
            bar.update(len(batch))
    if failures:
        more = f" ({len(failures)} such patches in all)" if len(failures) > 1 else ""
        raise DataError(failures[0] + more)
    return contents
