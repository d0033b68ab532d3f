"""What the tests of models in and out share."""

from __future__ import annotations

from pathlib import Path

import pytest
from exchanged import build_thin
from fakes import darkness_state

from wsi_meta.models.card import Calibration, ModelCard
from wsi_meta.models.model import Model, network_of


@pytest.fixture(scope="session")
def dark_model() -> Model:
    """A thin ResNet whose logit is about the share of dark pixels, calibrated."""
    card = ModelCard(calibration=Calibration(temperature=0.25, bias=-1.5))
    return Model(
        network_of(darkness_state(card.preprocessing, build_thin), build_thin), card, "0" * 64, Path("dark.safetensors")
    )
