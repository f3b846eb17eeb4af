"""The two schedulers of a model: the noise of training is the pipeline's, and an export draws what was learnt."""

import json
import shutil
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, StableDiffusionPipeline

from configs.errors import UserError
from configs.schema import RunConfig
from train.demo.make_base import NOISE_SCHEDULE
from train.models.schedulers import load_noise_scheduler, load_sampler, write_sampler

OWN = ["DDIMScheduler", "EulerDiscreteScheduler", "DPMSolverMultistepScheduler", "UniPCMultistepScheduler"]
CANNOT_READ_SAMPLE = ["PNDMScheduler", "EulerAncestralDiscreteScheduler", "KDPM2DiscreteScheduler"]


def with_scheduler(folder: Path, pipeline_folder: Path, class_name: str, **settings: object) -> Path:
    """The tiny pipeline with another scheduler of the same noise schedule, as a hub's folder has it."""
    shutil.copytree(pipeline_folder, folder)
    betas = {key: value for key, value in NOISE_SCHEDULE.items() if key.startswith("beta")}
    shutil.rmtree(folder / "scheduler")
    getattr(diffusers, class_name)(**betas | {"steps_offset": 1} | settings).save_config(folder / "scheduler")
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"scheduler": ["diffusers", class_name]}))
    return folder


def noise_scheduler(folder: Path, prediction: str, **changes: object) -> DDPMScheduler:
    """Of a run that predicts this, with `changes` to its config."""
    config = RunConfig(name="s", model="m", data={"images": "-"}, prediction=prediction, **changes)
    return load_noise_scheduler(config, folder)


@pytest.mark.parametrize("class_name", OWN + CANNOT_READ_SAMPLE)
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_an_export_samples_what_was_learnt(tmp_path, pipeline_folder, class_name, prediction) -> None:
    """A denoiser that knows the answer, in the pipeline as diffusers reloads it: the answer is what is drawn."""
    folder = with_scheduler(tmp_path / "model", pipeline_folder, class_name)
    write_sampler(folder, noise_scheduler(folder, prediction))
    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    kept = prediction != "sample" or class_name in OWN
    assert type(pipeline.scheduler).__name__ == (class_name if kept else "DDIMScheduler")
    assert pipeline.scheduler.config.prediction_type == prediction
    bar = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2, 0)
    drawn, x_0, _ = draw_with_the_answer(pipeline, prediction, bar)
    assert (drawn - x_0).abs().max() < 0.5


def draw_with_the_answer(
    pipeline: StableDiffusionPipeline, prediction: str, bar: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, list[tuple[float, torch.Tensor]]]:
    """What `pipeline` draws with a denoiser that always predicts the same x_0; that x_0; and (t, x_t) of its passes.
    `bar`: ᾱ_t, in float64."""
    x_0 = 3 * torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))  # latents reach beyond [-1, 1]
    seen = []

    def forward(x_t: torch.Tensor, t: torch.Tensor, **_: object) -> tuple[torch.Tensor]:
        seen.append((float(t), x_t))
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
    return drawn.images, x_0, seen


def _interpolate(bar: torch.Tensor, t: float) -> np.ndarray:
    """ᾱ between two timesteps, where some samplers look: linear in log(σ/α), as they do."""
    log_sigmas = ((1 - bar) / bar).sqrt().log().numpy()
    if np.isinf(log_sigmas[-1]) and t == len(bar) - 1:
        return np.asarray(0.0)  # pure noise
    sigma = np.exp(np.interp(t, np.arange(len(bar)), log_sigmas))
    return np.asarray(1 / (1 + sigma**2))


def test_ddims_own_step_from_a_sample_prediction_is_the_papers(tmp_path, pipeline_folder) -> None:
    """x_{t−1} = α_{t−1} x̂_0 + σ_{t−1} ε̂, with ε̂ = (x_t − α_t x̂_0) / σ_t (Song et al. 2021, eq. 12, η = 0)."""
    folder = Path(shutil.copytree(pipeline_folder, tmp_path / "model"))
    write_sampler(folder, noise_scheduler(folder, "sample"))
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
    own = load_sampler(folder, noise_scheduler(folder, "epsilon"))
    instead = load_sampler(folder, noise_scheduler(folder, "sample"))
    assert type(own).__name__ == class_name
    assert torch.equal(own.alphas_cumprod, instead.alphas_cumprod)
    assert instead.config.clip_sample is False
    assert instead.config.steps_offset == 1


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_one_word_changes_and_nothing_else(tmp_path, pipeline_folder, prediction) -> None:
    folder = with_scheduler(tmp_path / "model", pipeline_folder, "PNDMScheduler")
    path = folder / "scheduler" / "scheduler_config.json"
    index, before = (folder / "model_index.json").read_bytes(), json.loads(path.read_text())
    write_sampler(folder, noise_scheduler(folder, prediction))
    assert json.loads(path.read_text()) == before | {"prediction_type": prediction}
    assert (folder / "model_index.json").read_bytes() == index


def test_a_file_that_leaves_settings_out_means_its_own_class_s(tmp_path, pipeline_folder) -> None:
    """LCM's schedule is not DDPM's, where neither is written."""
    folder = with_scheduler(tmp_path / "model", pipeline_folder, "LCMScheduler")
    (folder / "scheduler" / "scheduler_config.json").write_text('{"_class_name": "LCMScheduler"}')
    learnt = noise_scheduler(folder, "epsilon")
    assert torch.equal(learnt.alphas_cumprod, diffusers.LCMScheduler().alphas_cumprod)
    assert not torch.equal(learnt.alphas_cumprod, DDPMScheduler().alphas_cumprod)


def test_a_scheduler_of_another_release_is_told(tmp_path, pipeline_folder) -> None:
    folder = with_scheduler(tmp_path / "model", pipeline_folder, "PNDMScheduler")
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"scheduler": ["diffusers", "FromTomorrow"]}))
    with pytest.raises(UserError, match=r"its scheduler is a FromTomorrow, which diffusers .* does not have; install"):
        noise_scheduler(folder, "epsilon")


# √ᾱ_T and SNR(T), table 1 of Lin et al. 2024.
TABLE_1 = {
    "scaled_linear": ({"beta_start": 0.00085, "beta_end": 0.012}, 0.068265, 0.004682),
    "linear": ({"beta_start": 0.0001, "beta_end": 0.02}, 0.006353, 4.035993e-05),
    "squaredcos_cap_v2": ({}, 4.928220e-05, 2.428735e-09),
}


@pytest.mark.parametrize("name", TABLE_1)
def test_zero_terminal_snr_against_the_paper_s_table(tmp_path, pipeline_folder, name) -> None:
    """The last √ᾱ is 0 and was the table's; the first stays; between them each is moved and stretched alike."""
    betas, last_root, last_snr = TABLE_1[name]
    folder = with_scheduler(tmp_path / "model", pipeline_folder, "DDIMScheduler", beta_schedule=name, **betas)
    before, after = (
        noise_scheduler(folder, "v_prediction", zero_terminal_snr=value).alphas_cumprod.double().sqrt()
        for value in (False, True)
    )
    assert round(before[-1].item(), 6 if name != "squaredcos_cap_v2" else 11) == last_root
    assert (before[-1] ** 2 / (1 - before[-1] ** 2)).item() == pytest.approx(last_snr, rel=1e-4)
    assert after[-1] == 0
    assert after[0] == pytest.approx(before[0].item(), rel=1e-6)
    stretched = (before - before[-1]) * before[0] / (before[0] - before[-1])
    torch.testing.assert_close(after[:-1], stretched[:-1], rtol=2e-4, atol=1e-7)  # of fp32 betas and their product


def test_values_of_stable_diffusion_s_rescaled_schedule(pipeline_folder) -> None:
    """√ᾱ at some timesteps, before and after, worked out once in float64."""
    roots = np.linspace(0.00085**0.5, 0.012**0.5, 1000)
    exact = np.sqrt(np.cumprod(1 - roots**2))
    rescaled = (exact - exact[-1]) * exact[0] / (exact[0] - exact[-1])
    assert [f"{value:.6f}" for value in exact[[0, 500, 900, 999]]] == ["0.999575", "0.525674", "0.118959", "0.068265"]
    assert [f"{value:.6f}" for value in rescaled[[0, 500, 900, 999]]] == [
        "0.999575",
        "0.490937",
        "0.054409",
        "0.000000",
    ]
    after = noise_scheduler(pipeline_folder, "v_prediction", zero_terminal_snr=True).alphas_cumprod
    np.testing.assert_allclose(after.double().sqrt().numpy(), rescaled, rtol=2e-5, atol=0)


@pytest.mark.parametrize("class_name", ["PNDMScheduler", "DDIMScheduler", "EulerDiscreteScheduler"])
@pytest.mark.parametrize("prediction", ["v_prediction", "sample"])
def test_an_export_of_zero_terminal_snr_begins_with_pure_noise(
    tmp_path, pipeline_folder, class_name, prediction
) -> None:
    """At the last timestep, with nothing in it but the noise, and ends with the answer."""
    folder = with_scheduler(tmp_path / "model", pipeline_folder, class_name, timestep_spacing="leading")
    learnt = noise_scheduler(folder, prediction, zero_terminal_snr=True)
    write_sampler(folder, learnt)
    assert json.loads((folder / "model_index.json").read_text())["scheduler"] == ["diffusers", "DDIMScheduler"]
    settings = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    wanted = {"_class_name": "DDIMScheduler", "timestep_spacing": "trailing", "rescale_betas_zero_snr": True}
    wanted |= {"prediction_type": prediction, "clip_sample": False, "beta_schedule": "scaled_linear"}
    assert settings | wanted == settings

    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    assert torch.equal(pipeline.scheduler.alphas_cumprod, learnt.alphas_cumprod), "what was trained is what is drawn"
    drawn, x_0, seen = draw_with_the_answer(pipeline, prediction, learnt.alphas_cumprod.double())
    first, x_t = seen[0]
    assert first == 999
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(x_t, noise)
    assert learnt.add_noise(x_0, noise, torch.tensor([999])).equal(noise), "as training made it"
    assert (drawn - x_0).abs().max() < 0.5


def test_a_sampler_that_begins_with_pure_noise_by_itself_stays(tmp_path, pipeline_folder) -> None:
    """As the models have it that were trained so; and a run that turns it off turns it off in both."""
    its = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "prediction_type": "v_prediction"}
    folder = with_scheduler(tmp_path / "model", pipeline_folder, "EulerDiscreteScheduler", **its)
    path = folder / "scheduler" / "scheduler_config.json"
    before = json.loads(path.read_text())
    for changes in ({}, {"zero_terminal_snr": True}):
        learnt = noise_scheduler(folder, "v_prediction", **changes)
        assert learnt.alphas_cumprod[-1] == 0
        write_sampler(folder, learnt)
        assert json.loads(path.read_text()) == before
    learnt = noise_scheduler(folder, "v_prediction", zero_terminal_snr=False)
    assert learnt.alphas_cumprod[-1].sqrt() == pytest.approx(0.068265, rel=1e-4)
    write_sampler(folder, learnt)
    assert json.loads(path.read_text()) == before | {"rescale_betas_zero_snr": False}


def test_a_sampler_that_cannot_read_clean_latents_begins_with_pure_noise_still(tmp_path, pipeline_folder) -> None:
    its = {"rescale_betas_zero_snr": True, "timestep_spacing": "linspace"}
    folder = with_scheduler(tmp_path / "model", pipeline_folder, "EulerAncestralDiscreteScheduler", **its)
    sampler = load_sampler(folder, noise_scheduler(folder, "sample"))
    assert type(sampler) is DDIMScheduler
    assert (sampler.alphas_cumprod[-1], sampler.config.timestep_spacing) == (0, "trailing")
