"""Every recipe is planned offline by the command in its head, and what its head says of the plan is what comes out."""

import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest

from configs.reading.load import SCHEMA_FILE, load_config
from launcher.cli import main
from tests.sources import ROOT

RECIPES = sorted(SCHEMA_FILE.parent.glob("*.yaml"))


@pytest.fixture(autouse=True)
def beside_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the recipes and what `lockstep demo demo` leaves there; no model is known, and no cluster."""
    for recipe in RECIPES:
        shutil.copy(recipe, tmp_path)
    shutil.copytree(ROOT / "train/demo/base", tmp_path / "demo/base")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("PATH", str(tmp_path))  # no nvidia-smi, no sbatch
    return tmp_path


def plan(words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as ended:
        main.main()
    printed = capsys.readouterr()
    assert (ended.value.code or 0, printed.err) == (0, "")
    return printed.out


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_what_its_head_says(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    schema, command, *rest = recipe.read_text().splitlines()
    head = " ".join(line for line in rest if line.startswith("# "))
    assert schema == "# yaml-language-server: $schema=./schema.json"
    assert command.startswith(f"# lockstep plan {recipe.name} ")
    assert re.search(r"\bFor (one|\d+) ", head), "the hardware that it is for"
    assert re.search(r"Planned offline; not run on this hardware|Not timed itself", head), "what it was tested with"
    assert load_config(recipe).name == recipe.stem
    printed = plan(shlex.split(command.removeprefix("# ")), monkeypatch, capsys).splitlines()
    claims = [line.removeprefix("#     ") for line in rest if line.startswith("#     ")]
    assert len(claims) >= 2
    assert [line for line in claims if line not in printed] == []
    if "fits into" in head:
        assert any(line.startswith("memory ") for line in printed)
        assert not any("does not fit" in line for line in printed)


@pytest.mark.parametrize(
    ("recipe", "changes", "batch"),
    [
        ("sd15-512", ["--gpu-memory", "80GiB"], "64 = 64 micro-batch × 1 accumulation × 1 rank"),
        (
            "sd15-512",
            ["--gpu-memory", "24GiB", "gradient_checkpointing=false"],
            "64 = 2 micro-batch × 32 accumulation × 1 rank",
        ),
        (
            "sd21-768-v",
            ["--gpu-memory", "80GiB", "micro_batch=auto"],
            "512 = 32 micro-batch × 1 accumulation × 16 ranks (2 nodes × 8)",
        ),
        (
            "sdxl-lora",
            ["--gpu-memory", "24GiB", "gradient_checkpointing=false"],
            "16 = 2 micro-batch × 8 accumulation × 1 rank",
        ),
        (
            "sdxl-1024",
            ["--gpu-memory", "80GiB", "micro_batch=auto", "gradient_checkpointing=true"],
            "512 = 16 micro-batch × 1 accumulation × 32 ranks (4 nodes × 8)",
        ),
    ],
)
def test_what_the_lines_of_a_recipe_say_beside_their_keys(
    recipe: str, changes: list[str], batch: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["lockstep", "plan", f"{recipe}.yaml", "--samples", "10000", *changes]
    assert f"batch    {batch}" in plan(words, monkeypatch, capsys).splitlines()


def test_sdxl_s_stage_1_does_not_fit(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["lockstep", "plan", "sdxl-1024.yaml", "--samples", "10000", "--gpu-memory", "80GiB", "zero=1"]
    assert "NCCL; does not fit into 80.0 GiB" in plan(words, monkeypatch, capsys)
