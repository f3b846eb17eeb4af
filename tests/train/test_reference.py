"""The training step against plain PyTorch written from the papers."""

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
    folder = make_pipeline(tmp_path / "model", prediction)
    assert f"zero {zero}: losses within" in run_ranks(1, PROGRAM, folder, image_folder, zero, weighting)


def test_five_steps_of_stable_diffusion_2_equal_plain_pytorch(tmp_path, image_folder):
    folder = make_pipeline_2(tmp_path / "model")
    assert "zero 2: losses within" in run_ranks(1, PROGRAM, folder, image_folder, 2, "min_snr")
