"""A scan leaves the process that it runs in as it found it: settings, seeds, environment, allocator."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from slide_files import texture, write_slide
from states import STATE

RUN = """
from wsi_meta import scan
before = state()
scan(sys.argv[1], sys.argv[2], model=sys.argv[3], device="cpu", precision="fp32", **json.loads(sys.argv[4]))
after = state()
print(json.dumps({"changed": [name for name in before if before[name] != after[name]], "kept_mb": kept_of_a_gigabyte()}))
"""


@pytest.mark.parametrize("settings", [{"stride_px": 96}, {"tta": True, "stride_px": 96, "scheduler": "synchronous"}])
def test_a_scan_changes_nothing_of_its_process(tmp_path: Path, model_file: Path, settings: dict[str, Any]) -> None:
    slide = write_slide(tmp_path / "s.tif", texture(300, 300))
    arguments = [slide, tmp_path / "h.zarr", model_file, json.dumps(settings)]
    process = subprocess.run(
        [sys.executable, "-c", STATE + RUN, *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stderr
    told = json.loads(process.stdout)
    assert told["changed"] == []
    assert told["kept_mb"] < 100
