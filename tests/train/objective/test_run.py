"""A whole run of an objective with all that it can have, from a base whose own sampler can draw nothing of it."""

import json
import shutil

from diffusers import PNDMScheduler, StableDiffusionPipeline
from PIL import Image

from tests.ranks import start_ranks
from tests.runs import new_run, next_attempt
from tests.train.engines.test_objective_shapes import OBJECTIVES
from tests.train.test_options import PROGRAM
from train.demo.make_base import NOISE_SCHEDULE


def test_it_trains_draws_and_exports_a_pipeline_that_draws(tmp_path, pipeline_folder, image_folder) -> None:
    base = shutil.copytree(pipeline_folder, tmp_path / "base")
    shutil.rmtree(base / "scheduler")
    PNDMScheduler.from_config(NOISE_SCHEDULE | {"skip_prk_steps": True}).save_config(base / "scheduler")
    index = json.loads((base / "model_index.json").read_text())
    (base / "model_index.json").write_text(json.dumps(index | {"scheduler": ["diffusers", "PNDMScheduler"]}))
    changes = OBJECTIVES["everything"] | {"prediction": "sample", "steps": 2, "micro_batch": 6}
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
    assert pipeline.scheduler.alphas_cumprod[-1] == 0
    assert pipeline.scheduler.config.timestep_spacing == "trailing"
    image = pipeline("a red circle", height=32, width=32, num_inference_steps=3).images[0]
    assert image.size == (32, 32)
    card = (run.pipeline_path / "README.md").read_text()
    assert (
        "| prediction | sample |\n| loss weighting | soft min-SNR, γ = 5 |\n| loss | pseudo-Huber, by its schedule |\n"
        "| noise | offset 0.1, input perturbation 0.1, zero terminal signal-to-noise ratio |\n"
        "| timesteps | logit-normal, mean 0.3, std 1.5; from 100 to the scheduler's last; stratified over the batch |\n"
    ) in card
