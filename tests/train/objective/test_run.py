"""A whole run that predicts clean latents under min-SNR, from a base whose own sampler cannot read them."""

import json
import shutil

from diffusers import PNDMScheduler, StableDiffusionPipeline
from PIL import Image

from tests.ranks import start_ranks
from tests.runs import new_run, next_attempt
from tests.train.test_options import PROGRAM
from train.demo.make_base import NOISE_SCHEDULE


def test_it_trains_draws_and_exports_a_pipeline_that_draws(tmp_path, pipeline_folder, image_folder) -> None:
    base = shutil.copytree(pipeline_folder, tmp_path / "base")
    shutil.rmtree(base / "scheduler")
    PNDMScheduler.from_config(NOISE_SCHEDULE | {"skip_prk_steps": True}).save_config(base / "scheduler")
    index = json.loads((base / "model_index.json").read_text())
    (base / "model_index.json").write_text(json.dumps(index | {"scheduler": ["diffusers", "PNDMScheduler"]}))
    changes = {"prediction": "sample", "loss_weighting": "min_snr", "steps": 2, "micro_batch": 6}
    pictures = {"every_steps": 2, "prompts": ["a red circle"], "timesteps": 3}
    run = new_run(tmp_path / "run", base, image_folder, **changes, pictures=pictures)
    ranks = start_ranks(1, PROGRAM, run.path, next_attempt(run, 1).number, "{}")
    assert ranks.wait() == [0], ranks.said()[-3000:]

    assert Image.open(run.pictures_path_at(2) / "00-a-red-circle.png").size == (32, 32)
    lines = [json.loads(line) for line in run.metrics_path.read_text().splitlines()]
    assert all(0 < line["loss/train"] < 100 for line in lines)
    pipeline = StableDiffusionPipeline.from_pretrained(run.pipeline_path)
    assert type(pipeline.scheduler).__name__ == "DDIMScheduler"
    assert pipeline.scheduler.config.prediction_type == "sample"
    image = pipeline("a red circle", height=32, width=32, num_inference_steps=3).images[0]
    assert image.size == (32, 32)
    card = (run.pipeline_path / "README.md").read_text()
    assert "| prediction | sample |\n| loss weighting | min-SNR, γ = 5 |" in card
