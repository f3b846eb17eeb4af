"""The training step against plain PyTorch written from the papers."""

from pathlib import Path

import pytest

from tests.ranks import run_ranks
from tests.tiny import make_pipeline

PROGRAM = Path(__file__).with_name("train_against_reference.py")


@pytest.mark.parametrize(("prediction", "zero"), [("epsilon", 2), ("v_prediction", 0)])
def test_five_steps_equal_plain_pytorch(tmp_path, image_folder, prediction, zero):
    """Losses to 1e-6 relative at every micro-batch, each tensor after five steps to 1e-4 in relative norm."""
    folder = make_pipeline(tmp_path / "model", prediction)
    assert f"zero {zero}: losses within" in run_ranks(1, PROGRAM, folder, image_folder, zero)
