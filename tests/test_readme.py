"""The README is run: its config, its commands, its output, its links."""

import ast
import json
import re
import shlex
import subprocess
from pathlib import Path
from typing import get_args

import pytest

from configs.reading.load import load_config
from configs.scalars import NodeRange
from configs.schema import LossWeighting, Prediction, RunConfig
from launcher.cli.main import cli
from tests.shell import lockstep
from tests.tiny import make_images, make_pipeline

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
CONFIG = next(text for kind, text in BLOCKS if kind == "yaml")
CLUSTER = next(text for kind, text in BLOCKS if kind == "yaml" and text.startswith("cluster:"))
SOURCES = next(text for kind, text in BLOCKS if kind == "yaml" and "sources:" in text)
OBJECTIVE = next(text for kind, text in BLOCKS if kind == "yaml" and text.startswith("prediction:"))
COMMANDS = [line[2:] for kind, text in BLOCKS if kind == "console" for line in text.splitlines()]
OFFLINE = [command for command in COMMANDS if command.startswith(("lockstep plan", "lockstep schema"))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The README's config beside images, as a reader would have it, on a machine with one H100."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "my.yaml").write_text(CONFIG)
    (folder / "bin").mkdir()
    (folder / "bin/nvidia-smi").write_text("#!/bin/sh\necho 81559, 9.0, 550.54.15\n")
    (folder / "bin/nvidia-smi").chmod(0o755)
    return folder


@pytest.mark.parametrize("command", OFFLINE)
def test_commands_that_ask_do_what_they_say(folder, command):
    done = lockstep(*shlex.split(command)[1:], cwd=folder, PATH=str(folder / "bin"))  # as on a machine without sbatch
    assert (done.returncode, done.stderr) == (0, "")
    if command == "lockstep plan my.yaml --samples 10000":
        shown = next(text for kind, text in BLOCKS if kind == "text" and text.startswith("my → "))
        assert _without_the_machine(done.stdout, folder) == _without_the_machine(shown, folder)
    if command.endswith("--deepspeed"):
        assert json.loads(done.stdout)["train_batch_size"] == 256


def _without_the_machine(text: str, folder: Path) -> str:
    """Less what differs between machines: where the runs are, the free space there, and the machine's own memory."""
    text = re.sub(r"[\d,.]+ [KMGT]iB free", "… free", text.replace(str(folder), "~"))
    text = re.sub(r"(host .* for 1 rank; ).*", r"\1…", text)
    return re.sub(r"\nnote     a node needs.*?(?=\n\S)", "", text, flags=re.DOTALL).strip()


def test_commands_that_train_do_what_they_say(folder):
    """On a model and images of a size for tests, named by overrides behind the README's own words."""
    make_pipeline(folder / "model")
    make_images(folder / "images", 12)
    small = [f"model={folder / 'model'}", "data.resolution=32", "batch=4", "micro_batch=2", "precision=fp32"]
    small += ["warmup_steps=1", "data.workers=0"]
    run = {
        "lockstep submit my.yaml --local": [*small, "epochs=1"],
        "lockstep submit my.yaml --local --ranks 2 epochs=40": [*small, "epochs=2"],
    }
    run |= {c: [] for c in COMMANDS if c.startswith(("lockstep checkpoints runs/my ", "lockstep export runs/my "))}
    assert len(run) == 5
    assert set(run) <= set(COMMANDS)
    for command, overrides in run.items():
        done = lockstep(*shlex.split(command)[1:], *overrides, cwd=folder)
        assert done.returncode == 0, (command, done)
    assert (folder / "pipeline" / "unet" / "diffusion_pytorch_model.safetensors").exists()
    half = json.loads(_read_header(folder / "my.safetensors"))
    assert {entry["dtype"] for name, entry in half.items() if name != "__metadata__"} == {"F16"}
    assert "verified" in lockstep("checkpoints", "runs/my", "--verify", cwd=folder).stdout


def _read_header(file: Path) -> bytes:
    content = file.read_bytes()
    return content[8 : 8 + int.from_bytes(content[:8], "little")]


def test_the_cluster_s_line_is_a_config_s(folder):
    (folder / "cluster.yaml").write_text(CONFIG + CLUSTER)
    asked = load_config(folder / "cluster.yaml").cluster
    assert (asked.nodes, asked.gpus_per_node, asked.time) == (NodeRange(2, 8), 4, 12 * 3600)


def test_the_sources_are_a_config_s(folder):
    (folder / "sources.yaml").write_text(re.sub("^data:.*$", SOURCES.strip(), CONFIG, flags=re.MULTILINE))
    listed = load_config(folder / "sources.yaml").data.listed_sources
    assert [source.kind for source in listed] == ["images", "tars", "parquet", "hub"]


def test_the_keys_of_the_objective_go_together_and_name_every_choice(folder):
    (folder / "objective.yaml").write_text(CONFIG + OBJECTIVE)
    config = load_config(folder / "objective.yaml")
    keys = [line.partition(":")[0] for line in OBJECTIVE.splitlines()]
    assert all(key in config.model_fields_set for key in keys)
    choices = {
        "prediction": Prediction,
        "loss_weighting": LossWeighting,
        "loss": RunConfig.model_fields["loss"].annotation,
    }
    for key, literal in choices.items():
        assert re.search(rf"^{key}: .*[#:] {', '.join(get_args(literal))}$", OBJECTIVE, re.MULTILINE), key


def test_every_other_command_is_a_target_or_one_of_ours():
    targets = {
        line.split(":")[0] for line in (ROOT / "Makefile").read_text().splitlines() if re.match(r"[a-z-]+:", line)
    }
    rest = [c for c in COMMANDS if c not in OFFLINE and not c.startswith(("lockstep submit", "lockstep checkpoints"))]
    for command in rest:
        words = command.split()
        if words[0] == "make":
            assert words[1] in targets
            subprocess.run(["make", "--dry-run", words[1]], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        else:
            assert (words[0], words[1] in cli.commands) == ("lockstep", True), command
            assert lockstep(words[1], "--help").returncode == 0


def first_words(source: str) -> set[str]:
    """What is written first in the calls of `lockstep(…)`, of anybody's `.lockstep(…)`, and of `started(output, …)`,
    and what follows LOCKSTEP in a list or a call."""
    words: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            written, name = node.args, ast.unparse(node.func).rpartition(".")[2]
            words |= _texts({"lockstep": written[:1], "started": written[1:2]}.get(name, []))
        elif isinstance(node, ast.List):
            written = node.elts
        else:
            continue
        names = [ast.unparse(element) for element in written]
        if "LOCKSTEP" in names:
            words |= _texts(written[names.index("LOCKSTEP") + 1 :][:1])
    return words


def _texts(nodes: list[ast.expr]) -> set[str]:
    return {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}


def test_every_command_is_run_by_a_test_or_by_ci():
    sources = [file.read_text(encoding="utf-8") for file in (ROOT / "tests").rglob("*.py")]
    tested = set().union(*map(first_words, sources))
    targets = re.findall(r"^make ([a-z-]+)$", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)
    recipes = subprocess.run(
        ["make", "--dry-run", "--always-make", *targets], cwd=ROOT, check=True, capture_output=True, text=True
    )
    made = set(re.findall(r"bin/lockstep (\w+)", recipes.stdout))
    assert cli.commands.keys() - tested - made == set()


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("lockstep('save', run)", {"save"}),
        ("cluster.lockstep('stop', run)", {"stop"}),
        ("with started(output, 'logs', run): pass", {"logs"}),
        ("lab.popen([LOCKSTEP, 'why', run], stdout=out)", {"why"}),
        ("desk.run(LOCKSTEP, 'status')", {"status"}),
        ("tested = {'cancel'}; other('cancel'); lockstep(command, 'cancel')", set()),
    ],
)
def test_calls_of_commands_are_found(source, words):
    assert first_words(source) == words


def test_the_lab_is_a_command_too(tmp_path):
    down = lockstep("lab", "down", LOCKSTEP_LAB=str(tmp_path))
    assert (down.returncode, down.stdout, down.stderr) == (0, "was not up\n", "")
    refused = lockstep("lab", "run", "sinfo", LOCKSTEP_LAB=str(tmp_path))
    assert (refused.returncode, "lockstep lab up" in refused.stderr) == (2, True)


def test_the_words_are_the_help_s_words():
    done = lockstep("--help")
    for word in ("sample", "micro-batch", "batch", "step", "epoch", "timestep"):
        assert re.search(rf"^  {word} ", done.stdout, re.MULTILINE)
        assert f"| {word} |" in README
