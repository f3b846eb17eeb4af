"""bench.gpu on a machine without a GPU: what it lacks is installed, what fails is recorded, and all of it runs."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from bench import gpu
from tests.ranks import ROOT


@pytest.fixture
def session(tmp_path: Path) -> gpu.Session:
    return gpu.Session(gpu.arguments(["--device", "cpu", "--tiny"]), dict(os.environ), tmp_path)


def make_wheel(folder: Path, name: str) -> None:
    info = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{name}.py", "here = True\n")
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", "")


def test_packages_that_lack_are_installed_from_wheels_without_a_network(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(gpu, "NEEDED", {"json": "json", "lacks_here": "lacks_here"})
    with pytest.raises(SystemExit, match=r"^lacks_here cannot be imported here; pass --wheels"):
        gpu.install_missing(None)
    make_wheel(tmp_path, "lacks_here")
    environment = gpu.install_missing(tmp_path)
    code = "import lacks_here; assert lacks_here.here"
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)


def test_what_is_needed_there_is_what_we_depend_on():
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = {requirement.split(">")[0].lower().replace("_", "-") for requirement in project["dependencies"]}
    assert named - {name.lower() for name in gpu.NEEDED.values()} == {"setuptools", "torch"}, (
        "they come with CUDA's torch"
    )


@pytest.mark.parametrize(
    ("code", "how"),
    [
        ("import time; time.sleep(600)", "took too long"),
        ("raise SystemExit(3)", "exit code 3"),
        ("print('torch.OutOfMemoryError: CUDA out of memory'); raise SystemExit(1)", "out of memory"),
    ],
)
def test_what_fails_is_recorded_and_the_next_goes_on(session, code, how):
    assert session.run(["-c", code], limit=5)["failed"] == how
    assert session.run(["-c", "print('well')"], limit=60)["printed"] == "well\n"


def test_nothing_begins_when_the_time_is_over(session):
    session.args.seconds = gpu.LEAST - 1
    assert session.run(["-c", "raise SystemExit(3)"], limit=60) == {"failed": "no time was left"}


@pytest.mark.faults
def test_the_whole_command_runs_at_a_tiny_size(tmp_path, monkeypatch):
    monkeypatch.setenv("OUT", str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    words = ["-m", "bench.gpu", "--device", "cpu", "--tiny"]
    subprocess.run([sys.executable, *words], cwd=ROOT, check=True)
    [path] = tmp_path.glob("gpu-*.json")
    record = json.loads(path.read_text())
    assert "failed" not in record["tests"]
    assert record["peak"]["tflops"] > 0
    assert [case["case"]["engine"] for case in record["cases"]] == [case["engine"] for case in gpu.TINY_CASES]
    for case in record["cases"]:
        assert case["images_per_s"]["median"] > 0, case
        assert case["counts"]["operators"] > 100
        assert case["memory"]["planned"] > 0
    assert "ours/usual" in record["peer"]["printed"]
