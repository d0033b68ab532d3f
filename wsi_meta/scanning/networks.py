"""A scanner's model and its predictors: loaded once, made when they are first needed; and whether one is compiled."""

from __future__ import annotations

import copy
import hashlib
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from wsi_meta.errors import ModelFileError, OptionsError
from wsi_meta.heatmaps.store import Heatmap
from wsi_meta.inference.options import worth_compiling
from wsi_meta.inference.predictor import Predictor
from wsi_meta.inference.torch_settings import cpu_settings
from wsi_meta.models.card import ModelCard, read_card
from wsi_meta.models.model import Model, describe_patches, load_model, model_path
from wsi_meta.scanning.options import ScanPlan
from wsi_meta.scanning.threads import Threads

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Networks", "choose_compiled"]


class Networks:
    """A model and its predictors.

    Parameters
    ----------
    model : model file, ``default`` or None for the embedded one, or a loaded model
    predictor : one to use as it is, instead of a model
    threads : whose computing thread loads and makes them
    """

    def __init__(self, model: str | Path | Model | None, predictor: Predictor | None, threads: Threads) -> None:
        given: str | Path | Model | None = model if predictor is None else predictor.model
        self._changed = False
        self.path: Path
        self.card: ModelCard
        self._threads, self._given = threads, predictor
        self._making = threading.Lock()
        self._predictors: dict[tuple[int, bool], Predictor] = {}
        self._loading: Future[Model] | None = None
        if isinstance(given, Model):
            loaded, given = given, _own(given) if predictor is None else given
            self._changed = given.hash != loaded.hash
            self.path, self.card = given.path, given.card
            self._loading = Future()
            self._loading.set_result(given)
        else:
            self.path = model_path(given).absolute()
            self.card = read_card(self.path)

    @property
    def file(self) -> Path:
        """The model's file, for other processes to load; OptionsError where the model is not what is in it."""
        if self._changed:
            raise OptionsError(
                f"{self.path}: the model was changed since it was loaded, and other processes load the file; expected it as it "
                "is there; save what was changed as a file of its own (save_model), or scan in this process"
            )
        return self.path

    def begin_loading(self) -> None:
        """Begin to load the model, if that has not begun; it takes as long as finding tissue."""
        with self._making:
            if self._loading is None:
                self._loading = self._threads.begin(self._load)

    def model(self) -> Model:
        """Return the loaded model.

        Raises
        ------
        ModelFileError
        """
        self.begin_loading()
        assert self._loading is not None
        return self._loading.result()

    def hash(self) -> str:
        """Return the SHA-256 of the model file, hexadecimal; the model is not loaded for that."""
        if self._loading is not None:
            return self.model().hash
        return hashlib.sha256(self.path.read_bytes()).hexdigest()

    def predictor(self, plan: ScanPlan, *, compiled: bool) -> Predictor:
        """Return the predictor for a plan: one compiled, one not, for a stream may hold slides of both kinds."""
        if self._given is not None:
            return self._given
        model, key = self.model(), (os.getpid(), compiled)
        with self._making:
            if key not in self._predictors:
                self._predictors[key] = self._threads.compute(
                    plan.inference.device,
                    lambda: Predictor.from_plan(model, plan.inference, dense=plan.dense, compiled=compiled),
                )
            return self._predictors[key]

    def unlikeness(self, patches: NDArray[np.uint8]) -> NDArray[np.float32] | None:
        """Return how unlike the patches in the model file some patches are; over 1 is unlike 99 % of them.

        It is computed on the CPU in float32, wherever blocks are computed, so that a slide's figure does not depend on that.

        Parameters
        ----------
        patches : uint8 (n, patch_px, patch_px, 3), RGB at the model's mpp

        Returns
        -------
        float32 (n,); None where the model file does not say what its patches look like, or a predictor was given, whose network
        may be any.
        """
        if self._given is not None or not len(patches) or (statistics := (model := self.model()).features) is None:
            return None

        def described() -> NDArray[np.float32]:
            with cpu_settings():
                return describe_patches(model, patches)

        return statistics.unlikeness(self._threads.compute("cpu", described))

    def close(self) -> None:
        """Let go of the model and of the predictors that were made."""
        self._predictors.clear()
        self._loading = None

    def _load(self) -> Model:
        model = load_model(self.path)
        if model.card != self.card:
            raise ModelFileError(f"{self.path}: was replaced while it was opened; start again")
        return model


def _own(model: Model) -> Model:
    """Return a model as it is now: later changes to the program's do not reach it. A module of its own is a copy already."""
    now = model.as_it_is()
    is_shared = now.network is model.network and not now.card.foreign
    return replace(now, network=copy.deepcopy(now.network)) if is_shared else now


def choose_compiled(
    plan: ScanPlan, cells: int, there: Heatmap | None, compiler_found: Callable[[str], bool], note: Callable[[str], None]
) -> bool:
    """Tell whether to compile for a slide: as asked; as the store that is there was begun; else if the cells repay it.

    Parameters
    ----------
    cells : of the slide
    compiler_found : tells of a device whether the compiler is there that it takes
    note : is told where none was found
    """
    if plan.compiled != "auto":
        return plan.compiled == "yes"
    if there is not None:
        return there.record.identity.compiled
    device, precision = plan.inference.device, plan.inference.precision
    if not worth_compiling(device, precision, cells=cells, views=plan.views, dense=plan.dense):
        return False
    if not (found := compiler_found(device)):
        note("no C++ compiler (g++ or clang++) was found: the network runs uncompiled, which is slower")
    return found
