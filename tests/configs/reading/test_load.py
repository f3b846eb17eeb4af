"""The config reader: what a user writes, and what they are told where it is wrong."""

import string
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from configs.errors import ConfigError
from configs.reading.load import dump_config, load_config
from configs.reading.messages import find_section, list_keys
from configs.reading.yaml_tree import parse_scalar
from configs.scalars import NodeRange
from configs.schema import RunConfig, SourceConfig
from tests.pokemon import POKEMON

LEAST = "model: org/model\ndata: {images: ./images}\n"


def write(folder: Path, text: str, name: str = "run.yaml") -> str:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return str(path)


def told(folder: Path, text: str, *overrides: str) -> list[str]:
    """The lines a user reads, without the folder."""
    with pytest.raises(ConfigError) as caught:
        load_config(write(folder, text), overrides)
    assert caught.value.exit_code == 2
    return str(caught.value).replace(f"{folder}/", "").split("\n")


def test_the_least_config_has_every_default(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, LEAST, "dragons.yaml"))
    assert (config.name, config.model) == ("dragons", "org/model")
    assert (config.lr, config.zero, config.precision) == (1e-5, "auto", "auto")
    assert config.runs == str(tmp_path / "runs")


def test_the_design_page_example_reads(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, POKEMON))
    assert config.lr == 1e-5
    assert config.cluster.time == 12 * 3600
    assert config.cluster.nodes == NodeRange(2, 8)
    assert config.ema is not None
    assert config.ema.decay == 0.9999
    assert config.pictures is not None
    assert config.pictures.prompts == ["a red dragon", "a blue fox"]


def test_all_problems_at_once_in_file_order(tmp_path: Path) -> None:
    text = "model: org/model\ndata: {images: ./images, resolution: 500}\nbach: 4\nlr: fast\nlr: 1\nzero: 7\n"
    assert told(tmp_path, text, "steps=many") == [
        "run.yaml:2:38: data.resolution: must be a multiple of 8, not 500; nearest: 496 and 504",
        "run.yaml:3:1: unknown key bach; did you mean batch?",
        "run.yaml:4:5: lr: must be a number, not 'fast'; write e.g. lr: 1e-5",
        "run.yaml:5:1: lr is set twice, first at run.yaml:4:1; keep one",
        "run.yaml:6:7: zero: must be 0, 1, 2, 3 or auto, not 7",
        "command line: steps: must be a whole number, not 'many'; write e.g. steps: 10000",
    ]


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        ("train_batch_size: 4", "in diffusers that is micro_batch (samples per rank and pass), in DeepSpeed batch"),
        ("max_train_steps: 4", "here it is steps"),
        ("learning_rate: 4", "here it is lr"),
        ("gradient_accumulation: 4", "here it is gradient_accumulation_steps"),
        ("pretrained_model_name_or_path: x", "here it is model"),
        ("train_data_dir: x", "here it is data.images"),
        ("prediction_type: sample", "here it is prediction"),
        ("snr_gamma: 5", "unknown key snr_gamma; min_snr_gamma, with loss_weighting: min_snr"),
        ("loss_weight_fn: MIN_SNR_GAMMA", "here it is loss_weighting"),
        ("checkpoints_total_limit: 4", "here it is checkpoint.keep"),
        ("resolution: 512", "its place is data.resolution, so write data: {resolution: …}"),
        ("time: 12:00:00", "its place is cluster.time"),
        ("warmup_step: 5", "did you mean warmup_steps?"),
        ("zzz: 5", "the keys here are name, model, "),
        ("<<: 5", "the merge key << is not read"),
    ],
)
def test_unknown_keys_answer_with_what_was_meant(tmp_path: Path, line: str, answer: str) -> None:
    (message,) = told(tmp_path, LEAST + line + "\n")
    assert message.startswith("run.yaml:3:1: ")
    assert answer in message


@pytest.mark.parametrize(
    "wrong", ["learning_rate: 1e-4", "epoch: 3", "data: {}", "lr: fast", "pictures: {every_steps: 0}"]
)
def test_keys_that_disagree_are_told_beside_whatever_else_is_wrong(tmp_path: Path, wrong: str) -> None:
    """As far as each of them is right alone."""
    least = "model: org/model\n" + ("" if "data" in wrong else "data: {images: ./images}\n")
    lines = told(tmp_path, least + "zero: 0\nprecision: bf16\nsteps: 5\nsamples: 9\n" + wrong + "\n")
    assert (
        sum(
            "zero: 0 keeps no fp32 weights beside those of the passes, which precision bf16 needs" in line
            for line in lines
        )
        == 1
    )
    assert sum("the length is given 2 times, as steps and samples" in line for line in lines) == 1
    assert len(lines) > 2, "and what was wrong by itself"
    assert all(line.startswith("run.yaml:") for line in lines)


@pytest.mark.parametrize(
    "text",
    [
        "zero: 0\nprecision: fp61\n",
        "zero: 0\nmixed_precision: bf16\n",
        "export: ema\nuse_ema: true\n",
        "export: ema\nema: 3\n",
    ],
)
def test_what_disagrees_with_a_wrong_key_is_not_told(tmp_path: Path, text: str) -> None:
    """Nobody knows yet whether it will."""
    assert len(told(tmp_path, LEAST + text)) == 1


def test_what_earlier_versions_called_a_key_is_read(tmp_path: Path) -> None:
    path = write(tmp_path, LEAST + "schedule: cosine\n")
    assert load_config(path).lr_schedule == "cosine"
    assert load_config(path, ["lr_schedule=linear"]).lr_schedule == "linear"
    assert load_config(path, ["schedule=linear"]).lr_schedule == "linear"
    assert "\nlr_schedule: cosine\n" in dump_config(load_config(path))
    assert told(tmp_path, LEAST + "schedule: cosin\n") == [
        "run.yaml:3:11: lr_schedule: must be constant, linear or cosine, not 'cosin'; did you mean cosine?"
    ]
    assert told(tmp_path, LEAST + "schedule: cosine\nlr_schedule: linear\n") == [
        "run.yaml:3:1: unknown key schedule; here it is lr_schedule"
    ]


def test_what_is_left_open_of_the_cost_stays_open_in_a_dump(tmp_path: Path) -> None:
    """All else is written out, so that another default of a later release is not another run."""
    text = dump_config(load_config(write(tmp_path, LEAST + "zero: 1\ncheckpoint: {keep: 5}\n")))
    assert all(
        f"\n{line}\n" in text for line in ("lr: 1.0e-05", "precision: auto", "zero: 1", "report_every_steps: 10")
    )
    assert "  keep: 5\n" in text
    assert not any(key in text for key in ("every_steps: 500", "offload", "gpus_per_node", "workers"))


def test_a_mistyped_required_key_is_one_problem(tmp_path: Path) -> None:
    assert told(tmp_path, "modle: org/model\ndata: {images: .}\n") == [
        "run.yaml:1:1: unknown key modle; did you mean model?"
    ]


SOURCES = """model: org/model
data:
  sources:
    - {images: ./a}
    - {parquet: "b/*.parquet", caption: blip, repeats: 2}
    - {tars: /c, repeats: 0.1}
    - {hub: me/mine, revision: v1}
"""


def test_sources_are_read_with_their_paths_and_written_back(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, SOURCES))
    listed = config.data.listed_sources
    assert [(source.kind, source.place) for source in listed] == [
        ("images", f"{tmp_path}/a"),
        ("parquet", f"{tmp_path}/b/*.parquet"),
        ("tars", "/c"),
        ("hub", "me/mine"),
    ]
    assert [source.exact_repeats for source in listed] == [1, 2, Fraction(1, 10), 1]
    text = dump_config(config)
    assert load_config(write(tmp_path, text)) == config
    assert "null" not in text


def test_the_short_form_is_one_source(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, LEAST))
    assert config.data.listed_sources == [SourceConfig(images=f"{tmp_path}/images")]


@pytest.mark.parametrize(
    ("data", "answer"),
    [
        ("{images: ./a, sources: [{images: ./b}]}", "2:21: data.sources takes the place of data.images; make it one"),
        ("{sources: [{images: a}, {images: a, tars: b}]}", "2:31: data.sources[1]: names images and tars; each source"),
        ("{sources: [{repeats: 2}]}", "2:18: data.sources[0]: names no files; each source is one of images, parquet"),
        ("{sources: [{tars: a, revision: b}]}", "2:28: data.sources[0]: revision is of a data set on the hub, not of"),
        (
            "{sources: []}",
            "2:17: data.sources: the list has the wrong length; write data.sources: [{images: ./pokemon}",
        ),
        (
            "{images: ./a, background: '#ffffff80'}",
            '2:33: data.background: must be a colour that hides what is behind it, by its name or as "#rrggbb" in '
            "quotes, not '#ffffff80'",
        ),
        ("{images: ./a, caption_tokens: 77}", "2:37: data.caption_tokens: must be 75, 150 or 225, not 77"),
        ("{sources: [./a]}", "2:18: data.sources[0]: must be a mapping (key: value lines), not './a'"),
        ("{sources: [{image: ./a}]}", "2:19: unknown key data.sources[0].image; did you mean data.sources[0].images?"),
        ("{sources: [{images: ./a, repeats: 0}]}", "2:41: data.sources[0].repeats: must be at least 0.001, not 0"),
        ("{parquet: ./a}", "2:8: unknown key data.parquet; data.sources: [{parquet: …}]"),
        ("{sources: [{hub: a/b/c}]}", "2:24: data.sources[0].hub: must be a data set's id on the hub, owner/name, not"),
    ],
)
def test_wrong_sources_are_told_with_their_places(tmp_path: Path, data: str, answer: str) -> None:
    lines = told(tmp_path, f"model: org/model\ndata: {data}\n")
    assert any(line.startswith(f"run.yaml:{answer}") for line in lines), lines


def test_missing_keys_say_which_and_how(tmp_path: Path) -> None:
    first, second = told(tmp_path, "batch: 4\ndata: {}\n")
    assert first.startswith("run.yaml:1:1: missing key model (Stable Diffusion to start from")
    assert first.endswith("write model: stable-diffusion-v1-5/stable-diffusion-v1-5")
    assert second.startswith("run.yaml:2:1: missing key data.images")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5),
        ("10_000", 10_000),
        (".5", 0.5),
        ("-3", -3),
        ("12:00:00", "12:00:00"),
        ("2-8", "2-8"),
        ("on", "on"),
        ("yes", "yes"),
        ("True", "True"),
        ("0777", "0777"),
        ("0x1F", "0x1F"),
        ("1__0", "1__0"),
        (".inf", ".inf"),
        ("~", None),
        ("null", None),
        ("false", False),
    ],
)
def test_scalars_are_what_they_look_like(text: str, value: object) -> None:
    assert parse_scalar(text) == value
    assert type(parse_scalar(text)) is type(value)


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        ("batch: 1e3", "must be a whole number, not 1e3; write 1000"),
        ("batch: 0777", "must be a whole number, not '0777'"),
        ("batch: '8'", "must be a whole number, not '8'"),
        ("batch: true", "must be a whole number, not true"),
        ("batch: 0", "must be at least 1, not 0"),
        ("lr: 1e999", "must be a finite number"),
        ("lr:", "is empty; write lr: 1e-5, or remove the line"),
        ("ema: yes", "must be true, false or a mapping (key: value lines), not 'yes'; write ema: true"),
        ("name: 2024", "must be text, not 2024; put it in quotes"),
        ("name: a/b", "must start with a letter or digit"),
        ("model: has space", "is neither a folder beside the config nor a hub id"),
        ("model: ''", "must be at least one character long"),
        ("precision: fp61", "must be fp32, bf16, fp16 or auto, not 'fp61'; did you mean fp16?"),
        ("cluster: {time: 43200}", "must be a time longer than zero, written HH:MM:SS"),
        ("cluster: {nodes: 8-2}", "must be a node count such as 4, or a range such as 2-8, not '8-2'"),
        ("optimizer: {betas: [0.9]}", "the list has the wrong length; write optimizer.betas: [0.9, 0.999]"),
        ("pictures: {prompts: []}", "the list has the wrong length"),
        ("pictures: {prompts: [a, 7]}", "pictures.prompts[1]: must be text, not 7"),
        ("data: [1]", "data: must be a mapping (key: value lines), not a list"),
        ("steps: 5\nepochs: 2", "the length is given 2 times, as steps and epochs; keep one of them"),
        ("zero: 0\nprecision: bf16", "write zero: 1"),
        ("micro_batch: 0", "micro_batch: must be a whole number of at least 1, or auto, not 0"),
        ("micro_batch: auto", "micro_batch: auto is a part of the batch; write batch, too"),
        ("batch: 8\nmicro_batch: auto\ngradient_accumulation_steps: 2", "2 settles the micro-batch already"),
        (
            "zero: 2\nengine: fsdp2",
            "zero: 2 is a stage of DeepSpeed's; with engine: fsdp2 leave it out, and write reshard",
        ),
        (
            "precision: fp16\nengine: fsdp2",
            "which engine: fsdp2 does not keep; write precision: bf16, or engine: deepsp",
        ),
        (
            "reshard: false\nengine: deepspeed",
            "reshard: false is a setting of FSDP2's; write engine: fsdp2, or leave it",
        ),
        ("reshard: true\nengine: deepspeed", "reshard: true is a setting of FSDP2's"),
        ("engine: fsdp", "engine: must be deepspeed or fsdp2, not 'fsdp'; did you mean fsdp2?"),
        ("export: ema", "export: ema needs an average to export"),
        (
            "lora: {targets: []}",
            "lora.targets: must be attention, all-linear, or a list of layers' names, such as [to_q,",
        ),
        ("lora: {targets: ['(']}", "and ( is none (missing ), unterminated subpattern at position 0)"),
        ("variant: fp-16", "variant: must be one word of letters, digits and underscores, not 'fp-16'; write e.g."),
        ("model: ./a.safetensors\nvariant: fp16", "variant: fp16 is of a folder's files, and"),
        ("model: ./a.safetensors\nrevision: main", "a.safetensors is on this machine; leave it out"),
        (
            "min_snr_gamma: 5",
            "5 weighs nothing with loss_weighting: uniform; write loss_weighting: min_snr or soft_min_snr",
        ),
        ("loss_weighting: min_snr\nmin_snr_gamma: 0", "min_snr_gamma: must be more than 0"),
        ("loss_weighting: debias", "must be uniform, min_snr, soft_min_snr or debiased, not 'debias'; did you mean"),
        (
            "prediction: epsilon\nzero_terminal_snr: true",
            "zero_terminal_snr: true leaves only noise at the last timestep, of which the noise (prediction: epsilon) "
            "tells nothing; write prediction: v_prediction or sample",
        ),
        ("timesteps: {first: 500, last: 499}", "timesteps.first: 500 is above timesteps.last: 499; exchange the two"),
        ("timesteps: {first: -1}", "timesteps.first: must be at least 0, not -1"),
        (
            "timesteps: {mean: 0.5}",
            "timesteps.mean: 0.5 is of distribution: logit_normal, and it is uniform; write timesteps: {distribution: "
            "logit_normal, mean: 0.5}, or leave it out",
        ),
        ("timesteps: {distribution: uniform, std: 2}", "timesteps.std: 2 is of distribution: logit_normal"),
        ("timesteps: {distribution: logit_normal, std: 0}", "timesteps.std: must be more than 0, not 0"),
        ("timesteps: {mean: .nan}", "timesteps.mean: must be a number, not '.nan'"),
        ("noise_offset: -0.1", "noise_offset: must be at least 0, not -0.1"),
        ("input_perturbation: 2", "input_perturbation: must be at most 1, not 2"),
        ("optimizer: {name: adam}", "optimizer.name: must be adamw, adamw_8bit or adafactor, not 'adam'; did you mean"),
        ("optimizer: {use_8bit_adam: true}", "unknown key optimizer.use_8bit_adam; optimizer: {name: adamw_8bit}"),
        (
            "optimizer: {name: adafactor, betas: [0.9, 0.99]}",
            "optimizer.betas means nothing to optimizer.name: adafactor; leave it out",
        ),
        ("optimizer: {name: adafactor, eps: 1e-6}", "optimizer.eps means nothing to optimizer.name: adafactor"),
        (
            "optimizer: {beta2_decay: -0.5}",
            "optimizer.beta2_decay means nothing to optimizer.name: adamw; leave it out",
        ),
        (
            "optimizer: {name: adamw_8bit, clip_threshold: 2}",
            "optimizer.clip_threshold means nothing to optimizer.name: adamw_8bit",
        ),
        (
            "optimizer: {name: adafactor}\nzero: 2",
            "zero: 2 lays the parameters end to end, and optimizer.name: adafactor needs the rows and columns of each; "
            "write zero: 0, or optimizer.name: adamw or adamw_8bit",
        ),
        (
            "optimizer: {name: adafactor}\nprecision: bf16",
            "works with zero: 0, which has no precision bf16; write precision: fp32, or engine: fsdp2 on one GPU",
        ),
        ("optimizer: {name: adafactor}\noffload: true", "adafactor does not work; leave it out"),
    ],
)
def test_wrong_values_say_what_why_and_the_cure(tmp_path: Path, line: str, answer: str) -> None:
    keys = {entry.partition(":")[0] for entry in line.split("\n")}
    least = "".join(entry + "\n" for entry in LEAST.splitlines() if entry.partition(":")[0] not in keys)
    messages = told(tmp_path, least + line + "\n")
    assert any(answer in message for message in messages), messages
    assert not any("pydantic" in message or "Input should" in message for message in messages)


@pytest.mark.parametrize(
    ("text", "place", "answer"),
    [
        ("", "run.yaml:1:1", "the file is empty; write at least model: "),
        ("- a\n", "run.yaml:1:1", "must be a mapping (key: value lines), not a list; write at least model: "),
        ("a: 1\n---\nb: 2\n", "run.yaml:2:1", "a second document begins"),
        ("model: [a\n", "run.yaml:2:1", "is not valid YAML"),
        ("model: a\n\tbatch: 1\n", "run.yaml:2:1", "indent with spaces, not tabs"),
        ("model: a: b\n", "run.yaml:1:9", "put quotes around text that holds ': '"),
        ("model: *there\n", "run.yaml:1:8", "*there names no anchor above it"),
        ("? [a]\n: 1\n", "run.yaml:1:3", "a list stands where a key is expected"),
        ("model: a\x07b\n", "run.yaml:1:9", "the character U+0007 is not allowed"),
    ],
)
def test_files_that_are_no_config_get_one_message(tmp_path: Path, text: str, place: str, answer: str) -> None:
    (message,) = told(tmp_path, text)
    assert message.startswith(place + ": ")
    assert answer in message


def test_files_that_do_not_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml: no such file"):
        load_config(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="is a folder"):
        load_config(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"model: a\nname: \xe9\n")
    with pytest.raises(ConfigError, match=r"latin\.yaml:2:7: is not UTF-8"):
        load_config(tmp_path / "latin.yaml")


def test_tags_are_refused_and_anchors_are_read(tmp_path: Path) -> None:
    (message,) = told(tmp_path, LEAST + "batch: !!int 3\n")
    assert message.startswith("run.yaml:3:8: the tag tag:yaml.org,2002:int is not read")
    text = LEAST + "checkpoint: {every_steps: &n 50}\npictures: {every_steps: *n, prompts: [a]}\n"
    config = load_config(write(tmp_path, text))
    assert config.pictures is not None
    assert config.pictures.every_steps == config.checkpoint.every_steps == 50


def test_overrides_follow_the_same_rules(tmp_path: Path) -> None:
    path = write(tmp_path, LEAST + "ema: true\nbatch: 4\n")
    words = ["batch=1_024", "data.flip=true", "ema.decay=0.99", "pictures.prompts=[a, b]", "cluster.time=12:00:00"]
    config = load_config(path, words)
    assert (config.batch, config.data.flip, config.cluster.time) == (1024, True, 43_200)
    assert config.ema is not None
    assert config.ema.decay == 0.99
    assert config.pictures is not None
    assert config.pictures.prompts == ["a", "b"]
    assert load_config(path, ["ema=false"]).ema is None


def test_a_length_on_the_command_line_replaces_the_one_in_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, LEAST + "epochs: 20\n")
    config = load_config(path, ["steps=5"])
    assert (config.steps, config.epochs, config.samples) == (5, None, None)
    assert load_config(path, ["epochs=2"]).epochs == 2
    with pytest.raises(ConfigError, match="command line: the length is given 2 times, as steps and samples"):
        load_config(path, ["samples=9", "steps=5"])


def test_override_problems_name_the_command_line(tmp_path: Path) -> None:
    messages = told(tmp_path, LEAST, "batch", "bach=3", "data.flip=on", "lr=[1")
    assert all(message.startswith("command line: ") for message in messages)
    text = "\n".join(messages)
    assert "'batch' is not key=value; write e.g. batch=256" in text
    assert "unknown key bach; did you mean batch?" in text
    assert "data.flip: must be true or false, not 'on'" in text
    assert "lr: is not valid YAML" in text


def test_paths_belong_to_where_they_were_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pipeline").mkdir()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setenv("HOME", "/home/me")
    path = write(tmp_path, "model: pipeline\ndata: {images: ../images}\nruns: ~/runs\n")
    config = load_config(path)
    assert config.model == str(tmp_path / "pipeline")
    assert config.data.images == str(tmp_path.parent / "images")
    assert config.runs == "/home/me/runs"
    assert load_config(path, ["data.images=pics"]).data.images == str(tmp_path / "elsewhere" / "pics")
    assert load_config(path, ["model=./m"]).model == str(tmp_path / "elsewhere" / "m")
    assert load_config(path, ["model=org/name"]).model == "org/name"


def test_a_dumped_config_starts_the_run_again(tmp_path: Path) -> None:
    text = LEAST + "batch: 32\nmicro_batch: 4\ngradient_accumulation_steps: 2\nema: true\ncluster: {time: 1-00:00:00}\n"
    config = load_config(write(tmp_path, text))
    (tmp_path / "other").mkdir()
    again = load_config(write(tmp_path / "other", dump_config(config)))
    assert again == config
    assert again.cluster.model_fields_set == config.cluster.model_fields_set
    assert dump_config(config).startswith("# yaml-language-server: $schema=")


@example(["a\x85?", "\u2028", "1e5", "- a: b", "#", " x "])
@settings(deadline=None)  # the machine may be busy
@given(st.lists(st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), min_size=1), min_size=1, max_size=3))
def test_any_prompt_survives_a_dump(tmp_path_factory: pytest.TempPathFactory, prompts: list[str]) -> None:
    config = RunConfig.model_validate(
        {"name": "a", "model": "m", "data": {"images": "/i"}, "runs": "/r", "pictures": {"prompts": prompts}}
    )
    folder = tmp_path_factory.mktemp("dump")
    assert load_config(write(folder, dump_config(config))) == config


@settings(deadline=None)  # the machine may be busy
@given(st.text(string.digits + "._+-eE:x", min_size=1, max_size=8))
def test_text_that_looks_like_a_number_stays_text(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    config = RunConfig.model_validate(
        {"name": "a", "model": "m", "data": {"images": "/i"}, "runs": "/r", "pictures": {"prompts": [text]}}
    )
    folder = tmp_path_factory.mktemp("dump")
    assert load_config(write(folder, dump_config(config))) == config


def test_every_key_is_documented() -> None:
    for key in list_keys(RunConfig):
        *above, name = key.split(".")
        section = find_section(RunConfig, tuple(above))
        assert section is not None
        assert section.model_fields[name].description, f"{key} has no description"
