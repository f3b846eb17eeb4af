"""The training step against plain PyTorch written from the papers."""

import json
from pathlib import Path

import pytest

from tests.ranks import run_ranks
from tests.tiny import make_pipeline, make_pipeline_2

PROGRAM = Path(__file__).with_name("train_against_reference.py")


@pytest.mark.parametrize(
    ("prediction", "weighting", "zero"),
    [("epsilon", "uniform", 2), ("v_prediction", "uniform", 0), ("epsilon", "min_snr", 3), ("sample", "uniform", 1)],
)
def test_five_steps_equal_plain_pytorch(tmp_path, image_folder, prediction, weighting, zero):
    """Losses to 1e-6 relative at every micro-batch, each tensor after five steps to 1e-4 in relative norm."""
    check_differences(tmp_path, make_pipeline(tmp_path / "model", prediction), image_folder, zero, weighting)


def test_five_steps_of_stable_diffusion_2_equal_plain_pytorch(tmp_path, image_folder):
    check_differences(tmp_path, make_pipeline_2(tmp_path / "model"), image_folder, 2, "min_snr")


def check_differences(tmp_path: Path, folder: Path, images: Path, zero: int, weighting: str) -> None:
    answer = tmp_path / "differences.json"
    run_ranks(1, PROGRAM, folder, images, zero, weighting, answer)
    differences = json.loads(answer.read_text())
    assert len(differences["losses"]) == 5 * 2, "five steps of two micro-batches"
    assert [loss for loss in differences["losses"] if not loss <= 1e-6] == []
    assert {name: tensor for name, tensor in differences["tensors"].items() if not tensor <= 1e-4} == {}
