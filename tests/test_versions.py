"""Which versions a result names."""

from __future__ import annotations

import torch

from wsi_meta.versions import library_versions


def test_a_library_that_is_not_installed_is_left_out_of_the_versions() -> None:
    found = library_versions(("torch", "no-such-library"))

    assert list(found) == ["python", "wsi-meta", "torch"]
    assert found["torch"] == torch.__version__.split("+")[0] or found["torch"] == torch.__version__
    assert set(found) < set(library_versions())
