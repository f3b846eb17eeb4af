"""The training step against plain PyTorch written from the papers."""

import json
from pathlib import Path

import pytest

from tests.ranks import run_ranks

PROGRAM = Path(__file__).with_name("train_against_reference.py")


EVERYTHING = {
    "zero_terminal_snr": True,
    "noise_offset": 0.1,
    "input_perturbation": 0.1,
    "loss": "huber",
    "timesteps": {"distribution": "logit_normal", "mean": 0.5, "first": 100, "stratified": True},
}


@pytest.mark.parametrize(
    ("objective", "zero"),
    [
        ({"prediction": "epsilon"}, 2),
        ({"prediction": "v_prediction"}, 0),
        ({"prediction": "epsilon", "loss_weighting": "min_snr"}, 3),
        ({"prediction": "v_prediction", "loss_weighting": "debiased"} | EVERYTHING, 1),
    ],
    ids=["epsilon", "v_prediction", "min_snr", "everything"],
)
def test_five_steps_equal_plain_pytorch(tmp_path, pipeline_folder, image_folder, objective, zero):
    """Losses to 1e-6 relative at every micro-batch, each tensor after five steps to 1e-4 in relative norm."""
    check_differences(tmp_path, pipeline_folder, image_folder, zero, objective)


def test_five_steps_of_stable_diffusion_2_equal_plain_pytorch(tmp_path, pipeline_2_folder, image_folder):
    objective = {"prediction": "v_prediction", "loss_weighting": "min_snr"}
    check_differences(tmp_path, pipeline_2_folder, image_folder, 2, objective)


def check_differences(tmp_path: Path, folder: Path, images: Path, zero: int, objective: dict) -> None:
    answer = tmp_path / "differences.json"
    run_ranks(1, PROGRAM, folder, images, zero, json.dumps(objective), answer)
    differences = json.loads(answer.read_text())
    assert len(differences["losses"]) == 5 * 2, "five steps of two micro-batches"
    assert [loss for loss in differences["losses"] if not loss <= 1e-6] == []
    assert {name: tensor for name, tensor in differences["tensors"].items() if not tensor <= 1e-4} == {}
