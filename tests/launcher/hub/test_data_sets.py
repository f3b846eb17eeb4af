"""Data sets of the hub: fetched at submit, read from this machine's copy ever after."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from configs.errors import UserError
from launcher.hub.files import choose_hub_files
from store.dataset.sources.places import find_files
from tests.launcher.folders import make_model_folder
from tests.launcher.hub.fake_hub import COMMIT, FakeHub
from tests.same_images import write_as_parquet
from tests.shell import ENVIRONMENT

CONFIG = "model: ./model\ndata: {sources: [{hub: me/mine}], resolution: 32}\nbatch: 4\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """`my.yaml`, whose data are on the hub."""
    make_model_folder(tmp_path / "model")
    (tmp_path / "my.yaml").write_text(CONFIG)
    return tmp_path


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[FakeHub]:
    """Serves 5 images as the train split of `me/mine`, in two parquet files, and one more as its test split."""
    images = tmp_path / "images"
    images.mkdir()
    for number in range(5):
        Image.new("RGB", (32, 32), (number, 0, 0)).save(images / f"{number}.png")
    lines = [f'{{"file_name": "{number}.png", "text": "a red {number}"}}\n' for number in range(5)]
    for name, chosen in (
        ("train-00000-of-00002", lines[:3]),
        ("train-00001-of-00002", lines[3:]),
        ("test-0", lines[:1]),
    ):
        (images / "metadata.jsonl").write_text("".join(chosen))
        write_as_parquet(images, tmp_path / f"served/data/{name}.parquet")
    (tmp_path / "served/README.md").write_text("what it is")
    with FakeHub("me/mine", tmp_path / "served", "datasets").serving() as hub:
        yield hub


def environment(folder: Path, hub: FakeHub | None) -> dict[str, str]:
    address = hub.address if hub is not None else "http://127.0.0.1:9"
    return {"HF_ENDPOINT": address, "HF_HUB_CACHE": str(folder / "cache"), "HF_HUB_OFFLINE": "0"}


CODE = """
import sys
from configs.errors import UserError
from configs.reading.load import load_config
from launcher.data.dataset import index_dataset, plan_dataset
try:
    kept = (plan_dataset if "plan" in sys.argv else index_dataset)(load_config(sys.argv[1]))
except UserError as error:
    sys.exit(f"refused: {error}")
print(*[sample.name for sample in kept.index])
"""


def index(folder: Path, hub: FakeHub | None, *words: str) -> str:
    """What submit (or plan) does with the data, without the run: the samples' names, or why it is refused."""
    command = [sys.executable, "-c", CODE, str(folder / "my.yaml"), *words]
    shell = subprocess.run(
        command, env=ENVIRONMENT | environment(folder, hub), capture_output=True, text=True, check=False
    )
    return (shell.stdout if shell.returncode == 0 else shell.stderr).strip()


ROWS = " ".join(
    f"data/train-0000{file}-of-00002.parquet:{row}" for file, row in ((0, 0), (0, 1), (0, 2), (1, 0), (1, 1))
)
CURE = "fetch it where there is a network: hf download --repo-type dataset me/mine"


def test_it_is_fetched_by_submit_and_read_without_a_network(folder: Path, hub: FakeHub) -> None:
    away = "refused: data set me/mine: cannot be fetched: the hub does not answer and it is not in the cache"
    assert index(folder, hub, "plan").startswith(away)
    assert hub.requested == [], "plan asks no network"
    assert index(folder, hub) == ROWS
    files = {"data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"}
    assert set(hub.requested) == files, "the train split, and nothing else"
    assert (folder / f"cache/datasets--me--mine/snapshots/{COMMIT}").is_dir()
    hub.requested.clear()
    assert index(folder, None) == ROWS
    assert index(folder, None, "plan") == ROWS
    assert hub.requested == []


def test_a_download_that_ended_early_is_not_taken_for_the_whole(folder: Path, hub: FakeHub) -> None:
    index(folder, hub)
    snapshot = folder / f"cache/datasets--me--mine/snapshots/{COMMIT}/data"
    (snapshot / "train-00001-of-00002.parquet").unlink()
    assert "(IncompleteSnapshotError)" in index(folder, None), "the hub's client has the list of files"
    for trees in (folder / "cache").rglob("*tree*"):
        shutil.rmtree(trees) if trees.is_dir() else trees.unlink(missing_ok=True)
    assert index(folder, None) == (
        "refused: data set me/mine: is not here as a whole (one of train-*-of-00002.parquet is missing); " + CURE
    )
    assert index(folder, hub) == ROWS


def test_what_cannot_be_had(folder: Path, hub: FakeHub) -> None:
    assert index(folder, None).endswith(f"; {CURE}")
    hub.gated = True
    assert index(folder, hub).endswith("cannot be fetched: accept its terms on the hub and run `hf auth login`")
    hub.gated = False
    hub.repo = "me/other"
    assert "data set me/mine: cannot be fetched: check the name, or run `hf auth login`" in index(folder, hub)


PREPARE = """
import sys
from configs.reading.load import load_config
from configs.solve.hardware import Hardware
from launcher.submit.inputs import RunInputs
from launcher.submit.prepare import prepare_run
prepared = prepare_run(load_config(sys.argv[1], sys.argv[2:]), RunInputs(Hardware()))
prepared.write()
print(prepared.config.data.sources[0].revision)
"""


def test_a_run_keeps_the_commit_that_it_began_with(folder: Path, hub: FakeHub) -> None:
    def prepare(*overrides: str) -> str:
        command = [sys.executable, "-c", PREPARE, str(folder / "my.yaml"), "precision=fp32", *overrides]
        shell = subprocess.run(
            command, env=ENVIRONMENT | environment(folder, hub), capture_output=True, text=True, check=False
        )
        return shell.stdout.strip() or shell.stderr

    assert prepare() == COMMIT
    hub.commit = "b" * 40
    assert prepare() == COMMIT
    assert prepare("name=another") == hub.commit


PARQUET = [f"data/{split}-0000{number}-of-00002.parquet" for split in ("train", "test") for number in (0, 1)]


@pytest.mark.parametrize(
    ("names", "kind", "pattern", "chosen"),
    [
        ([*PARQUET, "README.md"], "parquet", "**/train[-._]*.parquet", PARQUET[:2]),
        (["a.parquet", "sub.json"], "parquet", "**/*.parquet", ["a.parquet"]),
        (
            ["default/train/0.parquet", "default/test/0.parquet"],
            "parquet",
            "**/train/**/*.parquet",
            ["default/train/0.parquet"],
        ),
        (["train.parquet", "retrain.parquet"], "parquet", "**/train.parquet", ["train.parquet"]),
        (["my-train-0.tar", "my-val-0.tar"], "tars", "**/*[-._]train[-._]*.tar", ["my-train-0.tar"]),
        (["x/0.tar", "y/1.tar", "z.json"], "tars", "**/*.tar", ["x/0.tar", "y/1.tar"]),
        (["train-0.tar", "val-0.tar"], "tars", "**/train[-._]*.tar", ["train-0.tar"]),
        (
            ["train/a.png", "train/metadata.jsonl", "test/b.png"],
            "images",
            "train",
            ["train/a.png", "train/metadata.jsonl"],
        ),
        (["a.jpg", "a.txt"], "images", "", ["a.jpg", "a.txt"]),
    ],
)
def test_the_files_of_the_train_split_are_chosen(
    tmp_path: Path, names: list[str], kind: str, pattern: str, chosen: list[str]
) -> None:
    files = choose_hub_files("me/mine", names)
    assert (files.kind, files.pattern, files.names) == (kind, pattern, chosen)
    if kind != "images":
        for name in names:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).touch()
        assert find_files(kind, str(tmp_path / pattern), (".",)) == (tmp_path, chosen)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["README.md", "train.csv"], "holds no parquet files, tar shards or images (its files: README.md, train.csv)"),
        (["test-0.parquet"], "has splits, and none is named train"),
        (["en/train-0.parquet", "fr/train-0.parquet"], "has parquet files in several folders (en, fr), which may be"),
    ],
)
def test_files_of_which_nobody_can_tell(names: list[str], said: str) -> None:
    with pytest.raises(UserError, match=r"^data set me/mine: ") as caught:
        choose_hub_files("me/mine", names)
    assert said in str(caught.value)
