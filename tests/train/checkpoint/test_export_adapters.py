"""What is exported of a run that trains adapters, as diffusers reads it."""

import json
import sys
from inspect import signature
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
import yaml
from safetensors import safe_open

from configs.errors import UserError
from configs.reading.load import load_config
from store.checkpoint import checkpoints
from store.checkpoint.fragment_file import StoredFragment, fragment_file_name, write_fragments
from store.checkpoint.manifest import Identity, Manifest, digest_layout
from store.run.attempt_plan import AttemptPlan
from store.run.run_dir import RunDir
from tests.runs import new_run, next_attempt
from train.checkpoint import export
from train.engines.base import WEIGHTS
from train.models import load_model
from train.models.lora import is_adapter

NAME = "pytorch_lora_weights.safetensors"
NEAR = {"rtol": 1e-3, "atol": 1e-3}  # of latents after three timesteps: W + BA rounds otherwise than W x + B (A x)


@pytest.fixture(params=["pipeline_folder", "pipeline_2_folder", "pipeline_xl_folder"])
def model(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(request.param)


def save_run(folder: Path, model: Path, images: Path, lora: object, **changes: object) -> RunDir:
    """A run with one checkpoint, whose adapters are drawn, and large enough to be seen in a picture."""
    run = new_run(folder, model, images, lora=lora, precision="fp32", steps=4, **changes)
    plan = AttemptPlan.read(next_attempt(run, 1).plan_path)
    denoiser = load_model(plan.settle_config(load_config(run.config_path)), model, torch.device("cpu")).denoiser
    trained = {name: p.numel() for name, p in denoiser.named_parameters() if p.requires_grad}
    generator = torch.Generator().manual_seed(0)
    pieces, values = [], []
    for kind, scale in ((WEIGHTS, 0.3), ("ema", 0.2)):
        for name, size in trained.items():
            drawn = torch.randn(size, generator=generator) * scale
            pieces.append(StoredFragment(kind, name, 0, size))
            values.append((drawn + 1 if "magnitude" in name else drawn).numpy())
    identity = Identity(run.path.name, 4, 1, plan.nonce, digest_layout(trained))
    path = checkpoints.committed_path(run, 4, 1)
    path.mkdir(parents=True)
    entry = write_fragments(path / fragment_file_name(0), pieces, values, identity)
    manifest = Manifest(identity, 1, 2, (WEIGHTS, "ema"), 4, 0, None, (entry,))
    (path / "manifest.json").write_text(manifest.to_text())
    return run


def run_export(run: RunDir, *words: object) -> None:
    """The program that `lockstep export` starts."""
    before, sys.argv = sys.argv, ["export", str(run.path), *map(str, words)]
    try:
        export.main()
    finally:
        sys.argv = before


def load_pipeline(folder: Path) -> diffusers.DiffusionPipeline:
    pipeline = diffusers.DiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def draw(pipeline: diffusers.DiffusionPipeline) -> torch.Tensor:
    options = {"height": 32, "width": 32, "num_inference_steps": 3, "output_type": "latent"}
    return pipeline("a red circle", generator=torch.Generator().manual_seed(0), **options).images


FAMILIES = {
    "tiny": {"ss_base_model_version": "sd_v1", "ss_v2": "False"},
    "tiny-2": {"ss_base_model_version": "sd_v2", "ss_v2": "True"},
    "tiny-xl": {"ss_base_model_version": "sdxl_base_v1-0"},
}
EVERY_KIND = [".*to_.*", r"ff\.net.*", "proj_in", "proj_out", "conv.*", "time_emb_proj", "linear_.*"]


def test_adapters_load_and_draw_what_the_merged_pipeline_draws(tmp_path, model, image_folder) -> None:
    """On every kind of layer that can have one, with an alpha that is not the rank, under both sets of names."""
    run = save_run(tmp_path / "run", model, image_folder, {"rank": 3, "alpha": 4.5, "targets": EVERY_KIND})
    names = ("out", "kohya.safetensors", "merged", "one.safetensors")
    folder, file, merged, whole = (tmp_path / name for name in names)
    run_export(run, "--out", folder, "--file", file, "--weights", "raw")
    run_export(run, "--out", merged, "--file", whole, "--weights", "raw", "--merged")
    expected, base = draw(load_pipeline(merged)), draw(load_pipeline(model))
    assert (expected - base).abs().max() > 0.1, "adapters that are seen"
    for place, name in ((folder, NAME), (tmp_path, file.name)):
        pipeline = load_pipeline(model)
        pipeline.load_lora_weights(place, weight_name=name)
        torch.testing.assert_close(draw(pipeline), expected, **NEAR)
        scales = [module.scaling for module in pipeline.unet.modules() if hasattr(module, "scaling")]
        assert {scale for of_layer in scales for scale in of_layer.values()} == {1.5}, "alpha / rank is kept"
    with safe_open(file, "pt") as opened:
        told = opened.metadata()
    assert told.items() >= FAMILIES[model.name].items(), "by which AUTOMATIC1111's web UI lists it"
    single = type(pipeline).from_single_file(whole, config=str(merged))
    single.set_progress_bar_config(disable=True)
    torch.testing.assert_close(draw(single), expected, **NEAR)


def test_dora_loads_as_it_was_trained(tmp_path, pipeline_2_folder, image_folder) -> None:
    model, lora = pipeline_2_folder, {"rank": 3, "dora": True, "targets": ["to_q", "conv1"]}
    run = save_run(tmp_path / "run", model, image_folder, lora)
    run_export(run, "--out", tmp_path / "out")
    run_export(run, "--out", tmp_path / "merged", "--merged")
    pipeline = load_pipeline(model)
    pipeline.load_lora_weights(tmp_path / "out")
    torch.testing.assert_close(draw(pipeline), draw(load_pipeline(tmp_path / "merged")), **NEAR)
    with pytest.raises(UserError, match="DoRA has no form in such a file"):
        run_export(run, "--out", tmp_path / "neither", "--file", tmp_path / "a.safetensors")
    assert not (tmp_path / "neither").exists()


@pytest.mark.parametrize(
    ("base", "objective"),
    [("pipeline_folder", {}), ("pipeline_xl_folder", {"prediction": "v_prediction", "zero_terminal_snr": True})],
)
def test_the_card_s_program_draws_what_the_merged_pipeline_draws(
    tmp_path, request, image_folder, base, objective
) -> None:
    """Adapters come without a scheduler: where they were trained for another than the base model's, the card names
    it."""
    model = request.getfixturevalue(base)
    run = save_run(tmp_path / "run", model, image_folder, {"rank": 3}, **objective)
    run_export(run, "--out", tmp_path / "out")
    run_export(run, "--out", tmp_path / "merged", "--merged")
    card = (tmp_path / "out" / "README.md").read_text()
    program = card.split("```python\n")[1].split("```")[0].replace("path/to/this/folder", str(tmp_path / "out"))
    program = program.replace(f"path/to/{model.name}", str(model)).rpartition("image = ")[0]
    assert ("pipeline.scheduler = " in program) == bool(objective)
    told: dict[str, Any] = {}
    exec(program, told)
    pipeline, merged = told["pipeline"], load_pipeline(tmp_path / "merged")
    assert type(pipeline.scheduler) is type(merged.scheduler)
    for key in signature(type(merged.scheduler)).parameters:
        assert pipeline.scheduler.config[key] == merged.scheduler.config[key], key
    torch.testing.assert_close(draw(pipeline), draw(merged), **NEAR)


def test_an_export_of_adapters_holds_them_and_a_card_and_nothing_else(tmp_path, pipeline_folder, image_folder) -> None:
    run = save_run(tmp_path / "run", pipeline_folder, image_folder, True, export_dtype="bf16")
    for _ in range(2):  # the second takes the place of the first
        run_export(run, "--out", tmp_path / "out", "--file", tmp_path / "kohya.safetensors")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {NAME, "README.md", "lockstep.json"}
    with safe_open(tmp_path / "out" / NAME, "pt") as file:
        names = set(file.keys())
        assert {file.get_tensor(name).dtype for name in names} == {torch.bfloat16}
        settings = json.loads(file.metadata()["lora_adapter_metadata"])
    assert all(name.startswith("unet.") and ".lora_" in name for name in names)
    assert settings["unet.r"] == settings["unet.lora_alpha"] == 16
    assert settings["unet.target_modules"] == ["to_k", "to_out.0", "to_q", "to_v"]
    written = [tmp_path / "out" / "README.md", tmp_path / "out" / NAME, tmp_path / "kohya.safetensors"]
    assert len({path.stat().st_mode for path in written}) == 1, "as the umask has it, whoever wrote it"
    with safe_open(tmp_path / "kohya.safetensors", "pt") as file:
        kohya, metadata = set(file.keys()), file.metadata()
    assert "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_out_0.lora_down.weight" in kohya
    assert len(kohya) == len(names) * 3 / 2, "and an alpha for each layer"
    assert (metadata["ss_network_dim"], metadata["ss_network_alpha"]) == ("16", "16")
    _, front, text = (tmp_path / "out" / "README.md").read_text().split("---\n", 2)
    assert {"lora", "template:sd-lora"} <= set(yaml.safe_load(front)["tags"])
    assert f'pipeline.load_lora_weights("path/to/this/folder", weight_name="{NAME}")' in text
    assert f"`{pipeline_folder.name}`" in text
    assert "| adapters | LoRA, rank 16, alpha 16, on attention |" in text


def test_nothing_is_merged_where_the_whole_unet_is_trained(tmp_path, pipeline_folder, image_folder) -> None:
    run = save_run(tmp_path / "run", pipeline_folder, image_folder, None)
    with pytest.raises(UserError, match="trains the whole UNet, so there are no adapters to merge"):
        run_export(run, "--out", tmp_path / "out", "--merged")


def test_what_is_no_adapter_of_ours_is_left_alone(tmp_path, pipeline_folder, image_folder) -> None:
    run = save_run(tmp_path / "run", pipeline_folder, image_folder, True)
    other = tmp_path / "mine.safetensors"
    other.write_bytes(b"mine")
    with pytest.raises(UserError, match="was not exported by Lockstep"):
        run_export(run, "--file", other)
    assert other.read_bytes() == b"mine"
    assert all(is_adapter(name) for name in checkpoints.list_checkpoints(run)[0].open_reader().sizes(WEIGHTS))
