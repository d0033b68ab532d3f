"""A scan leaves the process that it runs in as it found it: settings, seeds, environment, allocator."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from slide_files import texture, write_slide
from states import STATE

RUN = """
from wsi_meta import scan
before = state()
for number, settings in enumerate([{}, {"tta": 2, "scheduler": "synchronous"}]):
    out = f"{sys.argv[2]}.{number}"
    scan(sys.argv[1], out, model=sys.argv[3], device="cpu", precision="fp32", batch_size=1, stride_px=96, **settings)
after = state()
print(json.dumps({"changed": [name for name in before if before[name] != after[name]]
    + [name for name in ("distributed", "tornado") if name in sys.modules], "kept_mb": kept_of_256_mb()}))
"""


def test_scans_change_nothing_of_their_process(tmp_path: Path, model_file: Path) -> None:
    slide = write_slide(tmp_path / "s.tif", texture(96, 96))
    arguments = [str(argument) for argument in (slide, tmp_path / "h.zarr", model_file)]
    untuned = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    process = subprocess.run(
        [sys.executable, "-c", STATE + RUN, *arguments], capture_output=True, text=True, check=False, env=untuned
    )
    assert process.returncode == 0, process.stderr
    told = json.loads(process.stdout)
    assert told["changed"] == []
    assert told["kept_mb"] < 50
