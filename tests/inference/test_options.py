"""What stands between a request and the machine that computes it."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch

from wsi_meta.errors import DeviceError
from wsi_meta.inference.options import CompilerVariables, compiler_errors


def test_a_compiler_that_fails_is_told_in_one_line() -> None:
    def fail(*_: Any) -> Any:
        raise OSError(28, "No space left on device")

    told = r"^compiled: torch could not compile the network \(OSError: .* No space left on device\); .*; mend that, or do x$"
    with pytest.raises(DeviceError, match=told), compiler_errors("do x"):
        torch.compile(lambda x: x + 1, backend=fail)(torch.zeros(2))

    with pytest.raises(DeviceError, match=r"\(OSError: no room\)"), compiler_errors("do x"):  # of its cache, before it begins
        raise OSError("no room")


def test_what_the_network_itself_raises_stays_as_it_is() -> None:
    with pytest.raises(RuntimeError, match=r"^of the network$"), compiler_errors("do x"):
        raise RuntimeError("of the network")


def test_variables_of_the_compiler_go_with_the_last_that_is_within(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_OF_THE_HOST", "stays")
    before, variables = dict(os.environ), CompilerVariables()
    with variables:
        with variables:
            os.environ["_TORCHINDUCTOR_NEW"] = "goes"
        assert os.environ["_TORCHINDUCTOR_NEW"] == "goes"
        os.environ["OTHER_OF_THE_HOST"] = "stays"
    assert dict(os.environ) == before | {"OTHER_OF_THE_HOST": "stays"}
    monkeypatch.delenv("OTHER_OF_THE_HOST")
