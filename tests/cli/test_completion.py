"""The shell completes commands, options and files, by click's own scripts."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from wsi_meta.cli import main


def complete(words: str) -> list[str]:
    """What bash is offered for the last word, which is empty after a space."""
    known = {"_WSI_META_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split(" ")) - 1)}
    run = CliRunner().invoke(main, [], prog_name="wsi-meta", env=known)
    assert run.exit_code == 0, run.output
    return run.stdout.splitlines()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_of_a_shell(shell: str) -> None:
    run = CliRunner().invoke(main, [], prog_name="wsi-meta", env={"_WSI_META_COMPLETE": f"{shell}_source"})
    assert "_WSI_META_COMPLETE" in run.stdout


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("wsi-meta sc", ["plain,scan", "plain,score"]),
        ("wsi-meta scan --tissue", ["plain,--tissue-mask"]),
        ("wsi-meta scan --mode d", ["plain,dense"]),
        ("wsi-meta scan sl", ["file,sl"]),
        ("wsi-meta info sl", ["file,sl"]),
        ("wsi-meta scan slide.tif --out h.zarr --model m", ["file,m"]),
        ("wsi-meta scan slide.tif --tissue-mask m", ["file,m"]),
        ("wsi-meta evaluate m", ["file,m"]),
        ("wsi-meta train patches --init r", ["file,r"]),
    ],
)
def test_what_is_offered(words: str, offered: list[str]) -> None:
    assert complete(words) == offered
