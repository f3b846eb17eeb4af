"""`lockstep plan` and `lockstep schema` as a user meets them."""

import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from PIL import Image

from configs.reading import json_schema
from configs.reading.load import SCHEMA_FILE
from launcher.cli import main
from launcher.plan import plan
from store.run import submission
from tests.launcher.folders import make_model_folder
from tests.pokemon import POKEMON

# States: 859,520,964 parameters × (2 in bf16 + (4 gradients + 12 masters and moments + 4 EMA) / 8 ranks) bytes.
# Activations: 0.872 GiB per sample. Frozen: 206,714,343 parameters of VAE and text encoder in bf16. Checkpoint: 16
# bytes per parameter. Of the node: 4 ranks × (2 GiB + 1.6 of buffers + 0.8 of loading + 7 workers × 0.5).
SCREEN = """\
pokemon → /scratch/me/runs/pokemon (new)
model    Stable Diffusion 1, stable-diffusion-v1-5/stable-diffusion-v1-5
batch    256 = 8 micro-batch × 4 accumulation × 8 ranks (2 nodes × 4)
length   10,000 samples → 39.06 steps/epoch; 20 epochs → 782 steps (192 samples into the next)
lr       0 → 1e-5 at step 100, then constant
memory   ZeRO-2: 14.3 GiB/GPU = 3.6 model states + 7.0 activations + 0.4 frozen models + 3.3 CUDA
         and NCCL; fits into 79.6 GiB
host     31.6 GiB/node for 4 ranks; fits into 500.0 GiB
disk     12.8 GiB per checkpoint, keeps 3; 900.0 GiB free
cache    20,000 moments, 1.2 GiB, to encode; the time is not known before the first are
shapes   1×4: 8×8 | 2×4: 8×4 ← | 4×4: 8×2 | 8×4: 8×1
pictures /scratch/me/runs/pokemon/pictures
next     lockstep submit pokemon.yaml
"""


PROFILE = 'gpu_memory: 79.6\ncompute_capability: "9.0"\nmemory_per_node: 500G\n'


def write_profile(folder: Path, text: str) -> None:
    path = folder / "config/lockstep/mycluster.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


class Shell(NamedTuple):
    """What the user's shell sees."""

    code: int
    out: str
    err: str


Lockstep = Callable[..., Shell]


@pytest.fixture
def lockstep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Lockstep:
    """Runs a command line in a folder that holds pokemon.yaml, on a disk with 900 GiB free and an empty model cache, by
    a user whose site profile says what the cluster's nodes have."""
    (tmp_path / "pokemon.yaml").write_text(POKEMON)
    write_profile(tmp_path, PROFILE)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(0, 0, 900 * 2**30))  # type: ignore[attr-defined]

    def run(*words: str) -> Shell:
        monkeypatch.setattr(sys, "argv", ["lockstep", *words])
        with pytest.raises(SystemExit) as ended:
            main.main()
        captured = capsys.readouterr()
        return Shell(int(ended.value.code or 0), captured.out, captured.err)

    return run


def plan_json(lockstep: Lockstep, *words: str) -> dict[str, Any]:
    shell = lockstep("plan", "pokemon.yaml", "--json", *words)
    assert shell.code == 0, shell.err
    found: dict[str, Any] = json.loads(shell.out)
    return found


def test_the_plan_on_one_screen(lockstep: Lockstep) -> None:
    assert lockstep("plan", "pokemon.yaml", "--samples", "10000") == (0, SCREEN, "")


def test_the_seed_examples(lockstep: Lockstep) -> None:
    one = ("cluster.nodes=1", "cluster.gpus_per_node=1", "--samples", "1000")
    tenth = plan_json(lockstep, "batch=100", "micro_batch=100", *one)
    assert (tenth["steps_per_epoch"], tenth["total_steps"], tenth["samples_into_next_epoch"]) == (10, 200, 0)
    eighth = plan_json(lockstep, "batch=800", "micro_batch=100", *one)
    assert (eighth["gradient_accumulation_steps"], eighth["world_size"]) == (8, 1)
    text = lockstep("plan", "pokemon.yaml", "batch=100", "micro_batch=100", *one).out
    assert "1,000 samples → 10 steps/epoch; 20 epochs → 200 steps\n" in text


def test_json_has_the_numbers_and_the_deepspeed_config(lockstep: Lockstep) -> None:
    found = plan_json(lockstep, "--samples", "10000")
    assert (found["batch"], found["micro_batch"], found["gradient_accumulation_steps"]) == (256, 8, 4)
    assert (found["world_size"], found["total_steps"], found["steps_per_epoch"]) == (8, 782, 39.0625)
    assert found["deepspeed"]["train_batch_size"] == 256
    assert found["deepspeed"]["train_micro_batch_size_per_gpu"] == 8
    assert found["memory"]["unet_parameters"] == 859_520_964
    assert found["checkpoint"]["bytes"] == 16 * 859_520_964
    assert {(s["layout"], s["offload"]) for s in found["memory"]["states"]} == {
        (f"ZeRO-{zero}", offload) for zero in (1, 2, 3) for offload in (False, True)
    }
    for shape in found["shapes"]:
        ranks = shape["nodes"] * shape["gpus_per_node"]
        assert ranks * shape["micro_batch"] * shape["gradient_accumulation_steps"] == 256
    assert len(plan_json(lockstep, "lr_schedule=cosine", "--samples", "10000")["lr"]) == 5
    assert json.loads(lockstep("plan", "pokemon.yaml", "--samples", "10000", "--deepspeed").out) == found["deepspeed"]


def test_another_shape_keeps_the_batch(lockstep: Lockstep) -> None:
    found = plan_json(lockstep, "--samples", "10000", "--nodes", "4", "--gpus-per-node", "2")
    assert (found["batch"], found["micro_batch"], found["gradient_accumulation_steps"]) == (256, 8, 4)
    assert "cluster.nodes=4 cluster.gpus_per_node=2" in found["next"]


@pytest.mark.parametrize(
    ("cluster", "sbatch", "next_words"),
    [
        ("", False, "lockstep submit pokemon.yaml --local"),
        ("", True, "lockstep submit pokemon.yaml"),
        ("cluster: {time: 01:00:00}\n", False, "lockstep submit pokemon.yaml"),
        ("cluster: {time: 01:00:00}\n", True, "lockstep submit pokemon.yaml"),
    ],
)
def test_local_is_recommended_where_no_cluster_is(
    lockstep: Lockstep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cluster: str, sbatch: bool, next_words: str
) -> None:
    """Neither one that the config names nor one that this machine belongs to, where --local would train on a login
    node."""
    lines = [line for line in POKEMON.splitlines(keepends=True) if not line.startswith("cluster:")]
    (tmp_path / "pokemon.yaml").write_text("".join(lines) + cluster)
    commands = tmp_path / "bin"
    commands.mkdir()
    if sbatch:
        (commands / "sbatch").write_text("#!/bin/sh\n")
        (commands / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", str(commands))
    assert plan_json(lockstep, "--samples", "10")["next"] == next_words


def test_a_batch_that_does_not_divide_is_refused_with_what_does(lockstep: Lockstep) -> None:
    shell = lockstep("plan", "pokemon.yaml", "--samples", "10000", "--nodes", "3")
    assert (shell.code, shell.out) == (2, "")
    assert "256 / 12 is not whole; nearest batches that do: 192 and 288; node counts that do: 1, 2, 4" in shell.err


def test_bad_input_ends_with_2_and_one_message(lockstep: Lockstep, tmp_path: Path) -> None:
    for words, answer in [
        (("none.yaml",), "none.yaml: no such file"),
        (("pokemon.yaml", "bach=3"), "command line: unknown key bach; did you mean batch?"),
        (("pokemon.yaml",), "pokemon: no such folder; correct it, or pass --samples N"),
        (("pokemon.yaml", "model=./none", "--samples", "9"), f"{tmp_path}/none: no such folder"),
        (("pokemon.yaml", "--samples", "0"), "0 is not in the range"),
    ]:
        shell = lockstep("plan", *words)
        assert (shell.code, shell.out) == (2, "")
        assert answer in shell.err
        assert "Traceback" not in shell.err


def test_planning_counts_the_images_and_writes_nothing_but_their_index(lockstep: Lockstep, tmp_path: Path) -> None:
    (tmp_path / "pokemon").mkdir()
    for number in range(3):
        Image.new("RGB", (8, 8)).save(tmp_path / f"pokemon/{number}.png")
        (tmp_path / f"pokemon/{number}.txt").write_text("a dragon")
    before = sorted(tmp_path.rglob("*"))
    found = plan_json(lockstep, "runs=./another-machine's/runs")
    assert found["dataset_samples"] == 3
    assert sorted(tmp_path.rglob("*")) == before, "the folder of runs has no folder to be in"
    found = plan_json(lockstep, "runs=./runs")
    assert (found["dataset_samples"], found["run_dir"]) == (3, str(tmp_path / "runs/pokemon"))
    kept = [path for path in tmp_path.rglob("*") if path not in before]
    assert {path.relative_to(tmp_path).parts[:3] for path in kept if path.is_file()} == {("runs", ".lockstep", "index")}


def test_buckets_are_listed_with_their_samples_and_what_they_save(lockstep: Lockstep, tmp_path: Path) -> None:
    """Of 4:3, bucket 576×448 shows all but 1/28; the square a quarter less. Two of nine images count twice."""
    for name, sizes in {"a": [(8, 8)] * 4 + [(80, 60)] * 3, "b": [(60, 80)] * 2}.items():
        (tmp_path / name).mkdir()
        for number, size in enumerate(sizes):
            Image.new("RGB", size).save(tmp_path / f"{name}/{number}.png")
            (tmp_path / f"{name}/{number}.txt").write_text("a dragon")
    (tmp_path / "odd.yaml").write_text(BUCKETED)
    shell = lockstep("plan", "odd.yaml")
    assert shell.code == 0, shell.err
    assert "length   9 samples, 11 in an epoch → 0.115 steps/epoch; 100 steps → 9,600 samples" in shell.out
    assert (
        "buckets  448×576: 2 | 512×512: 4 | 576×448: 3; 2.3% of an image is cropped away (15.9% as squares);\n"
        "         grain 32 allows micro-batches of 1, 2, 4, 8, 16, 32\n"
    ) in shell.out
    found = json.loads(lockstep("plan", "odd.yaml", "--json").out)
    assert found["buckets"]["sizes"][0] == {"width": 448, "height": 576, "samples": 2}
    assert found["buckets"]["cropped_as_squares"] == pytest.approx(7 / 11 / 4)
    assert (found["buckets"]["grain"], found["epoch_samples"]) == (32, 11.0)
    shell = lockstep("plan", "odd.yaml", "micro_batch=24")
    assert (shell.code, shell.out) == (2, "")
    assert "micro_batch 24 does not divide the grain of 32 samples" in shell.err


BUCKETED = """
name: odd
model: stable-diffusion-v1-5/stable-diffusion-v1-5
data:
  sources: [{images: ./a}, {images: ./b, repeats: 2}]
  buckets: {side: 512, step: 64, max_ratio: 2}
batch: 96
steps: 100
runs: ./runs
"""


def test_a_started_run_says_where_it_continues(lockstep: Lockstep, tmp_path: Path) -> None:
    run = tmp_path / "runs/pokemon"
    run.mkdir(parents=True)
    (run / "run.yaml").touch()
    words = ("plan", "pokemon.yaml", "--samples", "10000", "runs=./runs")
    assert "(started, no checkpoint yet)" in lockstep(*words).out
    for name in ("step-00000200-a0001", "step-00000400-a0002", "step-00000600-a0002.tmp"):
        (run / "checkpoints" / name).mkdir(parents=True)
    assert "(resumes after step 400)" in lockstep(*words).out


def test_what_is_not_known_is_not_guessed(lockstep: Lockstep, tmp_path: Path) -> None:
    text = lockstep("plan", "pokemon.yaml", "--samples", "10", "model=me/unheard-of").out
    parts = "ZeRO-2: unknown model states + unknown activations + unknown frozen models + 3.3 CUDA and NCCL"
    assert f"memory   {parts}; of 79.6 GiB" in " ".join(text.split("\n         ")).replace("memory  ", "memory  ")
    assert "memory of a node unknown" in text
    assert "checkpoint size unknown" in text
    memory = plan_json(lockstep, "--samples", "10", "model=me/unheard-of")["memory"]
    assert (memory["unet_parameters"], memory["device"]["total"], memory["fits"]) == (None, None, None)
    write_profile(tmp_path, "{}")
    text = lockstep("plan", "pokemon.yaml", "--samples", "10", "zero=auto").out
    assert "gpu_memory unknown" in text
    assert "auto     zero 2: nobody can tell what fits\n" in text
    assert "lockstep doctor writes it into the site profile" in " ".join(text.split())


def test_warnings_come_before_the_start(lockstep: Lockstep) -> None:
    text = lockstep("plan", "pokemon.yaml", "--samples", "100", "checkpoint.keep=99").out
    assert "note     warm-up takes 100 steps and the run 8" in text
    assert "99 checkpoints and the one being written do not fit into the free space" in " ".join(text.split())


def test_what_does_not_fit_is_told(lockstep: Lockstep, tmp_path: Path) -> None:
    write_profile(tmp_path, "gpu_memory: 12\nmemory_per_node: 16G\n")
    text = lockstep("plan", "pokemon.yaml", "--samples", "100").out
    flat = " ".join(text.split())
    assert "does not fit into 12.0 GiB" in flat
    assert "14.3 GiB is more than 11.0 GiB, all less a margin of 8%; write a smaller micro_batch, " in flat
    assert (
        "a node needs about 31.6 GiB of its own memory, and a job gets 16 GiB; write more into memory_per_node" in flat
    )


def test_what_is_auto_is_settled_and_told(lockstep: Lockstep, tmp_path: Path) -> None:
    words = ("--samples", "10000", "precision=auto", "zero=auto", "micro_batch=auto")
    text = lockstep("plan", "pokemon.yaml", *words).out
    assert "batch    256 = 32 micro-batch × 1 accumulation × 8 ranks" in text
    told = "auto     precision bf16: compute capability 9.0; zero 1: the lowest stage that fits with micro-batch 32; "
    assert told + "micro_batch 32: the largest that fits memory   ZeRO-1: " in text.replace("\n         ", " ").replace(
        "\n", " "
    )
    found = plan_json(lockstep, *words)
    assert {key: settled["value"] for key, settled in found["auto"].items()} == {
        "precision": "bf16",
        "zero": 1,
        "micro_batch": 32,
    }
    assert (found["deepspeed"]["zero_optimization"]["stage"], found["micro_batch"]) == (1, 32)
    assert found["memory"]["fits"] is True
    write_profile(tmp_path, "{}")
    shell = lockstep("plan", "pokemon.yaml", *words)
    assert (shell.code, shell.out) == (2, "")
    assert "how large a GPU is, is not known; write gpu_memory into the site profile, or a number here" in shell.err


def test_lengths_in_steps_and_samples(lockstep: Lockstep, tmp_path: Path) -> None:
    (tmp_path / "pokemon.yaml").write_text(POKEMON.replace("epochs: 20", "steps: 100"))
    found = lockstep("plan", "pokemon.yaml", "--samples", "10000").out
    assert "100 steps → 25,600 samples, 2.56 epochs" in found
    (tmp_path / "pokemon.yaml").write_text(POKEMON.replace("epochs: 20", "samples: 1_000"))
    found = lockstep("plan", "pokemon.yaml", "--samples", "10000").out
    assert "1,000 samples → 4 steps (24 samples more, to fill the last batch)" in " ".join(found.split())


def test_a_dataset_smaller_than_the_batch(lockstep: Lockstep) -> None:
    text = lockstep("plan", "pokemon.yaml", "--samples", "10").out
    assert "10 samples → 0.0391 steps/epoch; 20 epochs → 1 step (56 samples more, to fill the last batch)" in " ".join(
        text.split()
    )
    assert "lr       0 → 1e-7 at step 1, all of it warm-up" in text


OBJECTIVE = ("noise_offset=0.05", "loss_weighting=min_snr", "timesteps={distribution: logit_normal, stratified: true}")


def test_an_objective_that_is_not_the_plainest_is_told(lockstep: Lockstep) -> None:
    shell = lockstep("plan", "pokemon.yaml", "--samples", "10000", "--explain", *OBJECTIVE)
    flat = " ".join(shell.out.split())
    timesteps = "logit-normal, mean 0, std 1; stratified over the batch"
    assert (
        "loss prediction as the model's scheduler says; loss weighting min-SNR, γ = 5; noise offset 0.05; timesteps "
        f"{timesteps} memory"
    ) in flat
    assert f"on 256 timesteps at once: {timesteps}." in flat
    told = plan_json(lockstep, "--samples", "10", *OBJECTIVE)["objective"]
    assert told == {
        "prediction": "as the model's scheduler says",
        "loss weighting": "min-SNR, γ = 5",
        "noise": "offset 0.05",
        "timesteps": timesteps,
    }


def test_a_known_model_that_cannot_learn_it_is_refused_before_any_download(lockstep: Lockstep) -> None:
    """Stable Diffusion 1 predicts epsilon, 2.1 does not; neither is on this machine."""
    words = ("plan", "pokemon.yaml", "--samples", "10", "zero_terminal_snr=true")
    refused = lockstep(*words)
    assert (refused.code, refused.out) == (2, "")
    assert "stable-diffusion-v1-5: predicts epsilon, and zero_terminal_snr leaves only noise" in refused.err
    assert refused.err.endswith("write prediction: v_prediction or sample\n")
    assert lockstep(*words, "prediction=v_prediction").code == 0
    assert lockstep(*words, "model=stabilityai/stable-diffusion-2-1").code == 0
    assert lockstep(*words, "model=stabilityai/stable-diffusion-2-1-base").code == 2


def test_a_scheduler_in_the_hub_s_cache_is_asked(lockstep: Lockstep, tmp_path: Path) -> None:
    repository, commit = tmp_path / "cache/models--me--mine", "a" * 40
    make_model_folder(repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    words = ("plan", "pokemon.yaml", "--samples", "10", "model=me/mine")
    assert lockstep(*words).code == 0
    refused = lockstep(*words, "timesteps.last=1000")
    assert refused.code == 2
    assert "timesteps.last: 1000 is beyond the last of 1,000 timesteps" in refused.err


def test_shapes_memory_and_explain(lockstep: Lockstep) -> None:
    text = lockstep("plan", "pokemon.yaml", "--samples", "10000", "--shapes", "--memory", "--explain").out
    assert text.startswith(SCREEN.rstrip("\n"))
    assert "64×4    1×1" in text
    assert "8×4 ←" in text
    assert "ZeRO-3 + offload" in text
    flat = " ".join(text.split())
    assert "10,000 / 256 = 39.06 steps. 782 steps × 256 = 200,192 samples = 20.02 epochs" in flat
    assert "one step of this run trains on 256 timesteps at once" in flat
    for word in ("sample", "micro-batch", "world size", "batch", "step", "epoch", "timestep"):
        assert f"\n{word} " in text
    assert max(map(len, text.splitlines())) <= 100


def test_the_schema_documents_every_key_and_ships_current(lockstep: Lockstep) -> None:
    shell = lockstep("schema")
    assert shell.code == 0
    assert SCHEMA_FILE.read_text() == shell.out == json_schema.render_json_schema(), (
        "run: lockstep schema > configs/recipes/schema.json"
    )
    schema = json.loads(shell.out)
    assert schema["required"] == ["model", "data"]
    for section in (schema, *schema["$defs"].values()):
        for key, field in section["properties"].items():
            assert field.get("description"), f"{key} has no description"


def test_help_lists_the_commands_in_the_order_of_a_run(lockstep: Lockstep) -> None:
    text = lockstep("--help").out
    commands = text.partition("Commands:")[2]
    assert commands.index("plan") < commands.index("schema")
    assert "step         one update of the weights, after one batch" in text


@pytest.mark.parametrize("words", [(), ("--json",), ("--deepspeed",), ("--shapes", "--memory", "--explain")])
def test_a_plan_is_worked_out_once(lockstep: Lockstep, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]) -> None:
    """All that is printed comes of one value."""
    calls: list[str] = []

    def count(function: Callable[..., object]) -> Callable[..., object]:
        def counted(*args: object, **named: object) -> object:
            calls.append(function.__name__)
            return function(*args, **named)

        return counted

    monkeypatch.setattr(submission, "solve_batch", count(submission.solve_batch))
    for name in ("solve_length", "list_checkpoints", "render_deepspeed"):
        monkeypatch.setattr(plan, name, count(getattr(plan, name)))
    assert lockstep("plan", "pokemon.yaml", "--samples", "10000", *words).code == 0
    assert sorted(calls) == ["list_checkpoints", "render_deepspeed", "solve_batch", "solve_length"]


GPU = ("--samples", "10000", "zero=auto", "--gpu-memory", "80GiB")


def test_the_most_that_fits_is_what_auto_settles_and_no_more_would(lockstep: Lockstep) -> None:
    for entry in plan_json(lockstep, *GPU)["memory"]["most"]:
        words = (*GPU, f"gradient_checkpointing={str(entry['gradient_checkpointing']).lower()}")
        settled = plan_json(lockstep, *words, "micro_batch=auto")
        assert (settled["micro_batch"], settled["auto"]["zero"]["value"]) == (entry["micro_batch"], entry["zero"])
        assert settled["memory"]["device"]["total"] == entry["total_bytes"] <= 0.92 * 80 * 2**30
    text = lockstep("plan", "pokemon.yaml", *GPU, "--memory").out
    assert "\nthe most that fits into 80.0 GiB with a margin of 8%:\n" in text
    assert re.search(r"gradient_checkpointing: true +ZeRO-1, micro-batch 32 × 1: [\d.]+ GiB, a rank's whole", text)
    small = plan_json(lockstep, *GPU[:-1], "12", "gradient_checkpointing=true")["memory"]["most"]
    assert [entry["micro_batch"] for entry in small] == [4, 16]
    for entry in small:
        larger = (f"micro_batch={2 * entry['micro_batch']}", f"zero={entry['zero']}")
        recomputed = f"gradient_checkpointing={str(entry['gradient_checkpointing']).lower()}"
        assert plan_json(lockstep, *GPU[:-1], "12", *larger, recomputed)["memory"]["fits"] is False
    assert plan_json(lockstep, *GPU[:-1], "3")["memory"]["most"][0]["micro_batch"] is None
    assert "not one sample" in lockstep("plan", "pokemon.yaml", *GPU[:-1], "3", "--memory").out


def test_an_option_saves_what_the_plan_with_it_has_less(lockstep: Lockstep) -> None:
    now = plan_json(lockstep, *GPU)["memory"]
    options = {saving["option"]: saving for saving in now["savings"]}
    assert {"gradient_checkpointing: true", "data.cache: all", "offload: true", "engine: fsdp2, without zero"} <= set(
        options
    )
    for option, saving in options.items():
        word = option.removesuffix(", without zero").replace(": ", "=", 1)
        then = plan_json(lockstep, *GPU, word)["memory"]
        assert now["device"]["total"] - then["device"]["total"] == saving["saved"], option
        assert then["chosen"]["cpu_bytes"] - now["chosen"]["cpu_bytes"] == saving["moved"], option
    assert options["data.cache: all"]["saved"] == 0, "the pictures load what the cache spares"
    text = lockstep("plan", "pokemon.yaml", *GPU, "--memory").out
    assert re.search(r"\ndata\.cache: all +nothing here\n", text)
    assert re.search(r"\noffload: true +[\d.]+ [GM]iB, and takes [\d.]+ GiB of the node's memory\n", text)


@pytest.mark.parametrize("size", ["80GB", "80G", "0", "GiB", "-3", "1e3"])
def test_a_gpu_has_a_size_in_gib(lockstep: Lockstep, size: str) -> None:
    shell = lockstep("plan", "pokemon.yaml", "--samples", "10", f"--gpu-memory={size}")
    assert (shell.code, shell.out) == (2, "")
    assert shell.err == f"--gpu-memory {size}: is no size in GiB; write it as 80GiB (nvidia-smi's MiB / 1024)\n"


def test_adapters_are_shown_with_what_they_train_and_save(lockstep: Lockstep) -> None:
    found = plan_json(lockstep, "--samples", "10000", "lora.rank=4")
    assert (found["memory"]["trained_parameters"], found["memory"]["unet_parameters"]) == (797_184, 859_520_964)
    assert found["checkpoint"]["bytes"] == 16 * 797_184, "a checkpoint holds the adapters alone"
    text = lockstep("plan", "pokemon.yaml", "--samples", "10000", "lora.rank=4", "--memory").out
    line = "lora LoRA, rank 4, alpha 4, on attention: trains 797,184 parameters (0.09% beside 859,520,964 frozen ones)"
    assert f"{line}; model states 1.6 GiB in the place of 3.6 GiB" in " ".join(text.split())
    assert "797,184 trained and 859,520,964 frozen parameters in bf16 over 8 ranks" in text
    assert "lora: true" in lockstep("plan", "pokemon.yaml", "--samples", "10000", "--memory").out, "what it would save"


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ("lora.targets=[to_q,attn1]", "lora.targets: attn1 is no linear or convolution layer of the model's UNet"),
        ("lora.targets=attn", "lora.targets: must be attention, all-linear, or a list of layers' names"),
        ("lora.targets=['(']", "lora.targets: must hold names or regular expressions"),
        ("lora.dropout=0.1", "lora.dropout: must be 0 (a dropout layer would draw by rank and micro-batch"),
        ("lora={dora: true} zero=3", "when zero: 3 has freed them; write zero: 2 or engine: fsdp2"),
    ],
)
def test_adapters_that_cannot_be_trained_are_refused(lockstep: Lockstep, words: str, problem: str) -> None:
    shell = lockstep("plan", "pokemon.yaml", "--samples", "10000", *re.split(r" (?=zero)", words))
    assert (shell.code, shell.out) == (2, "")
    assert problem in shell.err
