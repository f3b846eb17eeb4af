"""`lockstep submit --local` from one YAML file to a pipeline."""

import json
import math
import re
from pathlib import Path

import torch
import yaml
from diffusers import StableDiffusionPipeline
from PIL import Image

from configs.reading.load import load_config
from store.dataset.index import Index
from store.run.code_version import read_code_version
from tests.launcher.runs import LOCAL, REPORT, STEPS, Trained, board_of, end_of
from tests.shell import lockstep, processes_of

TAGS = {
    "loss/train",
    "optimizer/lr",
    "optimizer/pre_clip_grad_norm",
    "optimizer/skipped",
    "throughput/samples_per_sec",
    "time/step_s",
    "time/data_wait_pct",
    "totals/bad_samples",
    "totals/epochs",
    "totals/samples_seen",
    "usage/peak_memory_gib",
    "writes/failed_checkpoints",
    "writes/newest_checkpoint_step",
}


def everything_in(folder: Path) -> dict[Path, tuple[int, bytes]]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


def test_it_ends_with_0_and_leaves_nothing_running(trained: Trained) -> None:
    assert (trained.ended.returncode, trained.ended.stderr) == (0, ""), trained.ended
    assert end_of(trained.run, 1) == {
        "schema": 1,
        "reason": "finished",
        "step": STEPS,
        "checkpoint": f"step-{STEPS:08d}-a0001",
        "notice": None,
    }
    assert processes_of(trained.run.path) == []
    assert "not ours" not in (trained.ended.stdout + trained.attempt.launcher_log_path.read_text())


def test_a_pipe_gets_plain_lines(trained: Trained) -> None:
    out = trained.ended.stdout
    assert not set(out) & {"\r", "\x1b", "━", "█"}
    steps = [f"step {step}/{STEPS}  epoch " for step in range(REPORT, STEPS + 1, REPORT)]
    assert [
        line[: len(steps[0]) + 2].partition("  ")[0] + "  epoch "
        for line in out.splitlines()
        if line.startswith("step ")
    ] == steps
    assert f"exported {trained.run.pipeline_path}" in out


def test_bad_samples_are_skipped_counted_and_named(trained: Trained) -> None:
    out = trained.ended.stdout
    assert "000.png is missing" in out
    assert "001.png: does not decode as an image" in out
    assert "skipped 2 bad samples, 18 are left" in out
    logs = "".join(trained.attempt.log_path(rank).read_text() for rank in (0, 1))
    assert re.search(r"skipped .*002\.png: does not decode \(.*\); position \d+ takes the next one", logs)


def test_metrics_hold_every_tag_at_every_reported_step(trained: Trained) -> None:
    assert [line["step"] for line in trained.metrics] == list(range(REPORT, STEPS + 1, REPORT))
    for line in trained.metrics:
        assert line.keys() == TAGS | {"step", "time"}
        assert all(math.isfinite(value) for value in line.values())
        assert line["totals/samples_seen"] == 2 * line["step"]
        assert line["totals/epochs"] == 2 * line["step"] / 18
        assert line["optimizer/lr"] == 1e-3
    assert trained.run.metrics_path.read_text() == trained.attempt.metrics_path.read_text()


def test_tensorboard_holds_the_same_scalars_and_every_picture(trained: Trained) -> None:
    board = board_of(trained.run)
    assert set(board.Tags()["scalars"]) == TAGS
    for tag in TAGS:
        written = [(line["step"], torch.tensor(line[tag]).item()) for line in trained.metrics]  # events hold fp32
        assert [(event.step, event.value) for event in board.Scalars(tag)] == written
    tags = ["pictures/00 a red circle", "pictures/01 a blue square"]
    assert sorted(board.Tags()["images"]) == tags
    for tag, name in zip(tags, ["00-a-red-circle.png", "01-a-blue-square.png"], strict=True):
        assert [event.step for event in board.Images(tag)] == [0, 20, STEPS]
        for event in board.Images(tag):
            with Image.open(trained.run.pictures_path_at(event.step) / name) as picture:
                assert (picture.size, picture.mode) == ((32, 32), "RGB")
    first, last = (trained.run.pictures_path_at(step) / "00-a-red-circle.png" for step in (0, STEPS))
    assert first.read_bytes() != last.read_bytes()


def test_the_run_folder_says_what_was_run(trained: Trained) -> None:
    written = load_config(trained.file)
    assert load_config(trained.run.config_path) == written.model_copy(update={"precision": "fp32"})
    planned = json.loads(lockstep("plan", trained.file, "--json", "--nodes", 1, "--gpus-per-node", 2).stdout)
    plan = json.loads(trained.attempt.plan_path.read_text())
    for key in ("micro_batch", "gradient_accumulation_steps", "total_steps"):
        assert plan[key] == planned[key], key
    assert plan["nodes"] * plan["gpus_per_node"] == planned["world_size"] == 2
    assert plan["model_folder"] == str(trained.model)
    assert json.loads(trained.attempt.deepspeed_path.read_text()) == planned["deepspeed"]
    assert len(Index.open_file(trained.run.dataset_path)) == plan["dataset_size"] == 18
    environment = json.loads(trained.attempt.environment_path.read_text())
    assert (environment["packages"]["torch"], environment["world_size"]) == (torch.__version__, 2)
    code = read_code_version()
    assert environment["code"]["digest"] == code.digest
    assert environment["code"]["commit"] == code.commit
    assert trained.attempt.code_diff_path.exists() == bool(code.diff)
    assert environment["variables"]["WORLD_SIZE"] == "2"
    assert environment["variables"]["HOME"] is None


def test_the_exported_pipeline_loads_and_draws(trained: Trained) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(trained.run.pipeline_path)
    assert pipeline.scheduler.config.prediction_type == "v_prediction", "the base's is epsilon"
    pipeline.set_progress_bar_config(disable=True)
    picture = pipeline("a red circle", height=32, width=32, num_inference_steps=2).images[0]
    assert picture.size == (32, 32)


def test_the_export_changes_the_unet_and_nothing_else(trained: Trained) -> None:
    base, exported = (
        {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        for folder in (trained.model, trained.run.pipeline_path)
    )
    changed = {str(path) for path in base.keys() | exported.keys() if base.get(path) != exported.get(path)}
    assert changed == {
        "README.md",
        "lockstep.json",
        "scheduler/scheduler_config.json",
        "unet/diffusion_pytorch_model.safetensors",
    }
    settings, before = (json.loads(files[Path("scheduler/scheduler_config.json")]) for files in (exported, base))
    assert settings == before | {"prediction_type": "v_prediction"}


def test_the_model_card_is_one_the_hub_reads(trained: Trained) -> None:
    _, front, text = (trained.run.pipeline_path / "README.md").read_text().split("---\n", 2)
    metadata = yaml.safe_load(front)
    assert (metadata["library_name"], metadata["pipeline_tag"]) == ("diffusers", "text-to-image")
    assert "the exponential moving average of the weights" in text
    assert "| batch | 2 = 1 micro-batch × 1 gradient accumulation steps × 2 ranks |" in text
    assert "| prediction | v_prediction |" in text


def test_the_same_command_again_changes_nothing(trained: Trained) -> None:
    before = everything_in(trained.run.path)
    again = lockstep("submit", trained.file, *LOCAL, 2)
    assert (again.returncode, again.stderr) == (0, "")
    assert f"trained is finished; its pipeline is {trained.run.pipeline_path}" in again.stdout
    assert everything_in(trained.run.path) == before


def test_another_config_under_the_same_name_is_refused(trained: Trained) -> None:
    before = everything_in(trained.run.path)
    other = lockstep("submit", trained.file, *LOCAL, 2, "seed=1", "batch=4")
    assert (other.returncode, other.stdout) == (2, "")
    assert "holds another run:\n  batch: 2 → 4\n  seed: 0 → 1\n" in other.stderr
    assert f"--fork {trained.run.path}" in other.stderr
    assert "Traceback" not in other.stderr
    assert everything_in(trained.run.path) == before
