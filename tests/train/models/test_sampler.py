"""What an export says of its scheduler: diffusers loads it, and reads the prediction as it was trained."""

import json
import shutil
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline

from train.demo.make_base import NOISE_SCHEDULE
from train.models.sampler import load_sampler, write_sampler

OWN = ["DDIMScheduler", "EulerDiscreteScheduler", "DPMSolverMultistepScheduler", "UniPCMultistepScheduler"]
CANNOT_READ_SAMPLE = ["PNDMScheduler", "EulerAncestralDiscreteScheduler", "KDPM2DiscreteScheduler"]


def with_scheduler(folder: Path, pipeline_folder: Path, class_name: str) -> Path:
    """The tiny pipeline with another scheduler of the same noise schedule, as a hub's folder has it."""
    shutil.copytree(pipeline_folder, folder)
    betas = {key: value for key, value in NOISE_SCHEDULE.items() if key.startswith("beta")}
    shutil.rmtree(folder / "scheduler")
    getattr(diffusers, class_name)(**betas, steps_offset=1).save_config(folder / "scheduler")
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"scheduler": ["diffusers", class_name]}))
    return folder


@pytest.mark.parametrize("class_name", OWN + CANNOT_READ_SAMPLE)
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_an_export_samples_what_was_learnt(tmp_path, pipeline_folder, class_name, prediction) -> None:
    """A denoiser that knows the answer, in the pipeline as diffusers reloads it: the answer is what is drawn."""
    folder = with_scheduler(tmp_path / "model", pipeline_folder, class_name)
    write_sampler(folder, prediction)
    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    kept = prediction != "sample" or class_name in OWN
    assert type(pipeline.scheduler).__name__ == (class_name if kept else "DDIMScheduler")
    assert pipeline.scheduler.config.prediction_type == prediction
    x_0 = 3 * torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))  # latents reach beyond [-1, 1]
    bar = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2, 0)

    def forward(x_t: torch.Tensor, t: torch.Tensor, **_: object) -> tuple[torch.Tensor]:
        alpha_bar = torch.from_numpy(_interpolate(bar, float(t)))
        alpha, sigma = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
        noise = (x_t.double() - alpha * x_0) / sigma
        answers = {"epsilon": noise, "v_prediction": alpha * noise - sigma * x_0, "sample": x_0.double()}
        return (answers[prediction].float(),)

    pipeline.unet.forward = forward
    pipeline.set_progress_bar_config(disable=True)
    noise = torch.Generator().manual_seed(0)
    drawn = pipeline(
        "", num_inference_steps=30, guidance_scale=1.0, height=32, width=32, generator=noise, output_type="latent"
    )
    assert (drawn.images - x_0).abs().max() < 0.5


def _interpolate(bar: torch.Tensor, t: float) -> np.ndarray:
    """ᾱ between two timesteps, where some samplers look: linear in log(σ/α), as they do."""
    log_sigmas = ((1 - bar) / bar).sqrt().log().numpy()
    sigma = np.exp(np.interp(t, np.arange(len(bar)), log_sigmas))
    return np.asarray(1 / (1 + sigma**2))


def test_ddims_own_step_from_a_sample_prediction_is_the_papers(tmp_path, pipeline_folder) -> None:
    """x_{t−1} = α_{t−1} x̂_0 + σ_{t−1} ε̂, with ε̂ = (x_t − α_t x̂_0) / σ_t (Song et al. 2021, eq. 12, η = 0)."""
    folder = Path(shutil.copytree(pipeline_folder, tmp_path / "model"))
    write_sampler(folder, "sample")
    scheduler = StableDiffusionPipeline.from_pretrained(folder).scheduler
    assert type(scheduler) is DDIMScheduler
    scheduler.set_timesteps(10)
    bar = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2, 0)
    x_t, guess = 2 * torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    for t, before in zip(scheduler.timesteps, [*scheduler.timesteps[1:], None], strict=True):
        alpha_bar, alpha_bar_before = bar[t], bar[before] if before is not None else bar[0]
        noise = (x_t.double() - alpha_bar.sqrt() * guess) / (1 - alpha_bar).sqrt()
        expected = alpha_bar_before.sqrt() * guess + (1 - alpha_bar_before).sqrt() * noise
        step = scheduler.step(guess, t, x_t)
        assert torch.equal(step.pred_original_sample, guess)
        torch.testing.assert_close(step.prev_sample.double(), expected, rtol=1e-3, atol=1e-4)  # 1 − ᾱ_t in fp32


@pytest.mark.parametrize("class_name", CANNOT_READ_SAMPLE)
def test_another_sampler_keeps_the_noise_schedule_and_clips_no_latents(tmp_path, pipeline_folder, class_name) -> None:
    folder = with_scheduler(tmp_path / "model", pipeline_folder, class_name)
    own = load_sampler(folder, "epsilon")
    instead = load_sampler(folder, "sample")
    assert type(own).__name__ == class_name
    assert torch.equal(own.alphas_cumprod, instead.alphas_cumprod)
    assert instead.config.clip_sample is False
    assert instead.config.steps_offset == 1


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_one_word_changes_and_nothing_else(tmp_path, pipeline_folder, prediction) -> None:
    folder = with_scheduler(tmp_path / "model", pipeline_folder, "PNDMScheduler")
    path = folder / "scheduler" / "scheduler_config.json"
    index, before = (folder / "model_index.json").read_bytes(), json.loads(path.read_text())
    write_sampler(folder, prediction)
    assert json.loads(path.read_text()) == before | {"prediction_type": prediction}
    assert (folder / "model_index.json").read_bytes() == index
