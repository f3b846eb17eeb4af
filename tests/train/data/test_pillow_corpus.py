"""The Pillow project's own test images, a thousand odd, broken and hostile files: none gets the better of a rank."""

import json
import os
import subprocess
import sys
import tarfile
from importlib.metadata import version
from pathlib import Path

import pytest

from tests.pngs import count_decodes, decode_upright

pytestmark = pytest.mark.faults
PROGRAM = Path(__file__).with_name("decode_corpus.py")
MOST_MEMORY = 1024  # MiB


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """They come with Pillow's source, from the package index."""
    folder = tmp_path_factory.mktemp("pillow")
    release = f"pillow=={version('pillow')}"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", "pillow", release]
    fetched = subprocess.run([*command, "--dest", str(folder)], capture_output=True, text=True)
    if fetched.returncode:
        tell = pytest.fail if "CI" in os.environ else pytest.skip
        tell(f"{release} cannot be fetched from the package index: {fetched.stderr.strip().splitlines()[-1:]}")
    with tarfile.open(next(folder.glob("*.tar.gz"))) as archive:
        archive.extractall(folder, filter="data")
    return next(folder.glob("*/Tests/images"))


def test_every_file_decodes_or_is_refused(corpus: Path) -> None:
    command = [sys.executable, "-W", "ignore", "-m", "tests.train.data.decode_corpus", str(corpus)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=PROGRAM.parents[3])
    happened = {name: tuple(what) for name, what in json.loads(done.stdout).items()}
    assert len(happened) > 1000
    neither = {name: what for name, (what, _, _) in happened.items() if not what.startswith(("decoded", "refused"))}
    assert neither == {}, "these hang, or end the process"
    assert {name: what for name, (what, _, _) in happened.items() if "MemoryError" in what} == {}
    assert {name: peak for name, (_, peak, _) in happened.items() if peak > MOST_MEMORY} == {}
    assert [name for name, (_, _, told) in happened.items() if not told] == [], "the header told another size"
    decoded = [name for name, (what, _, _) in happened.items() if what == "decoded"]
    assert len(decoded) > 0.75 * len(happened), "of Pillow 13.0.0 it was 844 of 1,060"


def test_a_png_has_the_pixels_that_pillow_makes_of_it(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [path for path in corpus.rglob("*.*png") if "decompression_bomb" not in path.name]
    assert len(files) > 200
    decoded = count_decodes(monkeypatch)
    other = []
    for path in files:
        content = path.read_bytes()
        if decode_upright(content, quick=True) != decode_upright(content, quick=False):
            other.append(path.name)
    assert other == []
    assert decoded[True] > 30
