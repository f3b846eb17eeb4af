"""How an attempt is opened: what the config leaves open is settled for its shape, from what submit wrote down."""

import json
from pathlib import Path
from typing import Any

import pytest

from configs.errors import UserError
from configs.known_models import SD1
from configs.reading.load import dump_config, load_config
from configs.schema import RunConfig
from configs.solve.batch import Shape, solve_batch
from configs.solve.hardware import Hardware
from store.files import write_atomic
from store.run.attempt_plan import AttemptPlan
from store.run.run_dir import Attempt, RunDir
from store.run.submission import Submission, open_attempt, plan_batch

RTX_3090 = Hardware(gpu_memory=24.0, compute_capability="8.6")
WEIGHTS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Stable Diffusion 1.5 by its headers and configs; there is no tensor in it."""
    folder = tmp_path / "model"
    for part, name in WEIGHTS.items():
        header = {"weights": {"dtype": "F32", "shape": [SD1.parameters[part]], "data_offsets": [0, 0]}}
        text = json.dumps(header).encode()
        (folder / part).mkdir(parents=True)
        (folder / part / f"{name}.safetensors").write_bytes(len(text).to_bytes(8, "little") + text)
        (folder / part / "config.json").write_text(json.dumps(SD1.configs.get(part, {})))
    return folder


def submit(tmp_path: Path, model: Path, hardware: Hardware, **changes: Any) -> RunDir:
    run = RunDir(tmp_path / "run")
    settings = {"name": "run", "model": str(model), "data": {"images": "/images"}, "batch": 64, "steps": 9}
    config = RunConfig.model_validate(settings | {"precision": "bf16"} | changes)
    write_atomic(run.config_path, dump_config(config))
    Submission(str(model), 1000, "d1ge57", "c0n7en7", hardware).write(run.submission_path)
    return run


def begin(run: RunDir, ranks: int) -> Attempt:
    """As the job's script does on the nodes that it was given."""
    config = load_config(run.config_path)
    return open_attempt(run, config, plan_batch(run, config, Shape(1, ranks)))


def stage_and_division(attempt: Attempt) -> tuple[int | None, int, int]:
    plan = AttemptPlan.read(attempt.plan_path)
    rendered = json.loads(attempt.deepspeed_path.read_text())
    assert rendered["zero_optimization"]["stage"] == plan.zero
    assert rendered["train_micro_batch_size_per_gpu"] == plan.micro_batch
    return plan.zero, plan.micro_batch, plan.gradient_accumulation_steps


def test_each_shape_settles_its_own(tmp_path: Path, model: Path) -> None:
    """Over more ranks each holds less of the optimizer, so that a lower stage or a larger micro-batch fits."""
    run = submit(tmp_path, model, RTX_3090, micro_batch="auto", ema=True)
    text = run.config_path.read_text()
    assert stage_and_division(begin(run, 2)) == (2, 8, 4)
    assert stage_and_division(begin(run, 8)) == (1, 8, 1)
    assert stage_and_division(begin(run, 2)) == (2, 8, 4)
    assert run.config_path.read_text() == text


def test_what_is_written_stands(tmp_path: Path, model: Path) -> None:
    run = submit(tmp_path, model, RTX_3090, micro_batch=4, zero=3)
    assert stage_and_division(begin(run, 2)) == (3, 4, 8)


def test_what_submit_did_not_know_is_not_guessed_later(tmp_path: Path, model: Path) -> None:
    run = submit(tmp_path, model, Hardware(), micro_batch=4)
    assert stage_and_division(begin(run, 2)) == (2, 4, 8)
    (run.submission_path).write_text(
        '{"schema": 1, "model_folder": "/gone", "dataset_size": 9, "dataset_digest": "d", "content": "c"}'
    )
    assert stage_and_division(begin(run, 2)) == (2, 4, 8), "as what an earlier version wrote"


def test_no_attempt_is_opened_where_no_micro_batch_fits(tmp_path: Path, model: Path) -> None:
    run = submit(tmp_path, model, Hardware(gpu_memory=6.0), micro_batch="auto")
    with pytest.raises(UserError, match="not one sample fits"):
        begin(run, 1)
    assert run.attempts() == []


@pytest.mark.parametrize(
    ("written", "zero", "settled"),
    [
        ({}, None, ("fp32", 2)),  # an earlier version's, which wrote neither
        ({"zero": 3}, None, ("fp32", 3)),
        ({"precision": "bf16"}, 1, ("bf16", 1)),
        ({"precision": "bf16", "zero": "auto"}, 1, ("bf16", 1)),
    ],
)
def test_a_rank_sees_what_was_settled(written: dict[str, Any], zero: int | None, settled: tuple[str, int]) -> None:
    config = RunConfig.model_validate({"name": "a", "model": "m", "data": {"images": "i"}} | written)
    plan = AttemptPlan(1, 2, 4, 2, 9, "/model", "nonce", 100, "digest", zero=zero)
    seen = plan.settle_config(config)
    assert (seen.precision, seen.zero, seen.micro_batch) == (*settled, 4)
    assert solve_batch(seen, Shape(1, 2)).micro_batch == 4
