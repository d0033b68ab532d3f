"""The recipe of the container names files that exist and that reach the build, and no target runs as root."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
RECIPE = (ROOT / "scripts" / "Dockerfile").read_text()


def test_what_is_copied_is_there_and_is_not_ignored() -> None:
    copied = [line.split()[1:-1] for line in RECIPE.splitlines() if line.startswith("COPY ") and "--from" not in line]
    allowed = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    sources = [name for names in copied for name in names]
    assert "wsi_meta" in sources
    for name in sources:
        assert (ROOT / name).exists()
        assert name in allowed or any(name.startswith(f"{folder}/") for folder in allowed)
    assert all((ROOT / name).exists() for name in allowed)


def test_no_target_runs_as_root() -> None:
    stages = re.split(r"^FROM ", RECIPE, flags=re.MULTILINE)[1:]
    named = {stage.split()[2]: stage for stage in stages}
    for target in ("cpu", "cuda"):
        assert named[target].startswith("runtime ")
        assert named[target].rstrip().endswith("USER wsi")
        assert f"--target {target}" in RECIPE
    assert 'ENTRYPOINT ["wsi-meta"]' in named["runtime"]
