"""Images that strangers have drawn, scanned and saved for twenty years, from Debian: `make test-data`.

tuxpaint-stamps-default has photographs and drawings of all sizes with a .txt beside each; openclipart-png clip art of
every aspect ratio, some of it too large to be decoded safely.
"""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.shell import lockstep
from train.demo.__main__ import HERE

pytestmark = pytest.mark.data


def fetch_package(name: str, folder: Path) -> Path:
    """Unpack a package of Debian's without installing it."""
    subprocess.run(["apt-get", "download", name], cwd=folder, check=True, capture_output=True)
    [package] = folder.glob(f"{name}_*.deb")
    subprocess.run(["dpkg", "-x", package, folder / name], check=True)
    package.unlink()
    return folder / name


def write_config(folder: Path, images: Path) -> Path:
    data = {"images": str(images), "on_bad_sample": "skip", "buckets": {"side": 64, "step": 16, "max_ratio": 2}}
    config = {"model": str(HERE / "base"), "data": data, "batch": 16, "micro_batch": 8, "steps": 10, "lr": 1e-4}
    file = folder / "config.yaml"
    file.write_text(json.dumps(config))  # which YAML contains
    return file


def look_at(config: Path) -> dict[str, Any]:
    """What `lockstep data` finds, with duplicates, after it drew 64 samples of the size they are trained in."""
    sheet = config.with_name("sheet.png")
    done = lockstep("data", config, "--duplicates", "--sheet", sheet, "--json", timeout=600)
    assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr
    with Image.open(sheet) as drawn:
        drawn.load()
    return json.loads(done.stdout)


def check_plan(config: Path) -> str:
    done = lockstep("plan", config)
    assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr
    return done.stdout


def test_tuxpaint_stamps(tmp_path):
    images = fetch_package("tuxpaint-stamps-default", tmp_path) / "usr/share/tuxpaint/stamps"
    config = write_config(tmp_path, images)
    found = look_at(config)
    pairs = [image for image in images.rglob("*.png") if image.with_suffix(".txt").exists()]
    assert found["samples"] == len(pairs) > 700
    assert all(bad["sample"] and bad["reason"] for bad in found["bad_samples"])
    svgs = [bad for bad in found["bad_samples"] if ".svg is not read; convert" in bad["reason"]]
    assert len(svgs) > 100
    assert f"{len(pairs)} samples" in check_plan(config)


def test_openclipart(tmp_path):
    images = fetch_package("openclipart-png", tmp_path) / "usr/share/openclipart/png"
    names = sorted(image.relative_to(images) for image in images.rglob("*.png"))
    captions = [{"file_name": str(name), "text": ", ".join([name.stem, *name.parent.parts])} for name in names]
    (images / "metadata.jsonl").write_text("\n".join(map(json.dumps, captions)) + "\n")
    config = write_config(tmp_path, images)
    found = look_at(config)
    assert found["samples"] + len(found["bad_samples"]) == len(names) > 8000
    assert 0 < len(found["bad_samples"]) < 100
    assert all("pixels, which are not safe to decode" in bad["reason"] for bad in found["bad_samples"])
    planned = check_plan(config)
    assert "48×80" in planned
    assert "80×48" in planned
