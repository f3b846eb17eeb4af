"""Whose `train` is it? A wheel of ours in an environment of its own runs our packages, whatever else is named so.

There, `site-packages` holds another wheel's `configs` and `train`, PYTHONPATH and the working directory hold impostors
of all five, and torch with everything else that we need is on PYTHONPATH behind them, as a site's module puts it there.
"""

import json
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

import lockstep as entry
from configs.reading.load import SCHEMA_FILE, load_config
from configs.solve.batch import Shape, solve_batch
from store.run import code_version
from store.run.end import End
from store.run.run_dir import RunDir
from store.run.submission import open_attempt
from tests.impostors import NOT_OURS, write_impostors
from tests.shell import ENVIRONMENT, lockstep
from tests.tiny import make_images, make_pipeline
from train.engines.cpu_extension import make_extension_folder

ROOT = Path(__file__).parents[1]
STEPS = 2
CONFIG = {
    "model": "./model",
    "data": {"images": "./images", "resolution": 32, "workers": 1},
    "batch": 2,
    "micro_batch": 1,
    "steps": STEPS,
    "lr": 1e-3,
    "precision": "fp32",
}
RIVAL = {
    "pyproject.toml": '[project]\nname = "rival"\nversion = "1"\n[build-system]\nrequires = ["setuptools"]\n'
    '[tool.setuptools]\npackages = ["configs"]\npy-modules = ["train"]\n',
    "configs/__init__.py": f"raise SystemExit({NOT_OURS!r})\n",
    "train.py": f"raise SystemExit({NOT_OURS!r})\n",
}
PROGRAMS = {  # that ask for nothing but their arguments, and how they call themselves
    "slurm.job.batch_script": "python -P -m lockstep slurm.job.batch_script",
    "slurm.lab": "lab",
    "train": "python -P -m lockstep train",
}


@dataclass(frozen=True)
class Installed:
    """The environment, a folder to work in, and the wheel that was installed."""

    bin: Path
    folder: Path
    wheel: Path

    def run(self, *words: object, **environment: str) -> subprocess.CompletedProcess[str]:
        command = [str(self.bin / str(words[0])), *map(str, words[1:])]
        theirs = [path for path in sys.path if path.endswith("site-packages")]
        path = os.pathsep.join([str(self.folder), *theirs])
        variables = ENVIRONMENT | {"PYTHONPATH": path, "TMPDIR": str(self.folder)} | environment
        return subprocess.run(
            command, cwd=self.folder, env=variables, capture_output=True, text=True, timeout=240, check=False
        )

    def program(self, *words: object, **environment: str) -> subprocess.CompletedProcess[str]:
        """A process as Lockstep starts its own."""
        return self.run("python", "-P", "-m", "lockstep", *words, **environment)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    folder = tmp_path_factory.mktemp("entry")
    sources, rival, built, environment = (folder / name for name in ("sources", "rival", "built", "environment"))
    copy_sources(sources)
    for name, text in RIVAL.items():
        (rival / name).parent.mkdir(parents=True, exist_ok=True)
        (rival / name).write_text(text)
    alone = ["--quiet", "--no-deps", "--no-index", "--disable-pip-version-check"]
    pip = [sys.executable, "-m", "pip"]
    build = ["wheel", *alone, "--no-cache-dir", "--no-build-isolation", "--wheel-dir", built, sources, rival]
    subprocess.run([*pip, *build], check=True)
    venv.create(environment, symlinks=True)
    wheels = sorted(built.glob("*.whl"))
    subprocess.run([*pip, "--python", environment, "install", *alone, *wheels], check=True)
    rivals = next(environment.glob("lib/*/site-packages/configs")) / "__init__.py"
    assert rivals.read_text() == RIVAL["configs/__init__.py"]
    made = Installed(environment / "bin", write_impostors(folder / "work"), next(built.glob("lockstep-*.whl")))
    lend_extension(made)
    return made


def lend_extension(installed: Installed) -> None:
    """DeepSpeed's extension, which takes 40 s to compile and is the same here."""
    code = "import lockstep; from train.engines.cpu_extension import make_extension_folder as make; print(make())"
    made = installed.run("python", "-P", "-c", code)
    assert (made.returncode, made.stderr) == (0, "")
    folder = Path(made.stdout.strip())
    folder.rmdir()
    folder.symlink_to(make_extension_folder())


def copy_sources(folder: Path) -> None:
    """As a clean clone has them: a build leaves its traces there."""
    folder.mkdir()
    for path in ROOT.iterdir():
        if path.is_file() and not path.name.startswith("."):
            shutil.copy(path, folder)
    for package in entry.PACKAGES:
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))


def story(run: RunDir) -> str:
    """All that the run's processes have said."""
    logs = [path for pattern in ("*.log", "logs/*") for path in run.path.glob(f"attempts/*/{pattern}")]
    return "\n".join(f"--- {path}\n{path.read_text(errors='replace')}" for path in logs if path.is_file())


def files_in(folder: Path) -> dict[str, bytes]:
    """Every file of our packages in `folder`, by its path."""
    files = (path for package in entry.PACKAGES for path in (folder / package).rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files if "__pycache__" not in path.parts}


def test_the_wheel_holds_what_the_clone_does_in_a_folder_of_its_own(installed: Installed) -> None:
    with zipfile.ZipFile(installed.wheel) as wheel:
        held = {name: wheel.read(name) for name in wheel.namelist() if ".dist-info/" not in name}
    packages = {f"lockstep_packages/{name}": content for name, content in files_in(ROOT).items()}
    assert set(held) == {"lockstep.py", *packages}
    assert held == packages | {"lockstep.py": (ROOT / "lockstep.py").read_bytes()}


def test_the_command_is_ours(installed: Installed) -> None:
    helped = installed.run("lockstep", "--help")
    assert (helped.returncode, helped.stderr) == (0, "")
    assert "Fine-tune Stable Diffusion" in helped.stdout
    printed = installed.run("lockstep", "schema")
    assert (printed.returncode, printed.stderr, printed.stdout) == (0, "", SCHEMA_FILE.read_text())
    recipe = [ROOT / "configs/recipes/laptop.yaml", "model=me/mine"]
    planned = installed.run("lockstep", "plan", *recipe, "--samples", 1000, "--json")
    assert (planned.returncode, planned.stderr) == (0, "")
    assert json.loads(planned.stdout)["steps_per_epoch"] == 31.25
    script = installed.run("lockstep", "plan", *recipe, "cluster.site=lab", "--sbatch")
    assert (script.returncode, script.stderr) == (0, "")
    started = re.findall(r"\S+ -m \S+ \S+", script.stdout)
    assert {line.split()[2] for line in started} == {"lockstep"}
    assert len(started) == 3


@pytest.mark.parametrize("name", PROGRAMS)
def test_every_process_that_we_start_is_ours(installed: Installed, name: str) -> None:
    done = installed.program(name, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.lower().startswith(f"usage: {PROGRAMS[name].lower()} ")


@pytest.mark.parametrize("words", [(), ("submit", "my.yaml"), ("json.tool",), ("training",)])
def test_nothing_else_is_started_that_way(installed: Installed, words: tuple[str, ...]) -> None:
    done = installed.program(*words)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.endswith("\nthe command for people is: lockstep COMMAND …\n")


def test_a_run_is_ours_on_every_rank_to_its_export(installed: Installed) -> None:
    """Through torch's launcher, then as SLURM starts a rank, which finds nothing left to train and exports again."""
    make_pipeline(installed.folder / "model")
    make_images(installed.folder / "images", 8)
    (installed.folder / "mine.yaml").write_text(json.dumps(CONFIG))
    submitted = installed.run("lockstep", "submit", "mine.yaml", "--local", "--ranks", 2)
    run = RunDir(installed.folder / "runs" / "mine")
    assert (submitted.returncode, submitted.stderr) == (0, ""), story(run)
    assert End.read(run.attempt(1).end_path) == End("finished", STEPS, f"step-{STEPS:08d}-a0001", None)
    exported = installed.run("lockstep", "export", "runs/mine", "--out", "exported")
    assert (exported.returncode, exported.stderr) == (0, "")
    assert (installed.folder / "exported/unet/diffusion_pytorch_model.safetensors").is_file()

    shutil.rmtree(run.pipeline_path)
    config = load_config(run.config_path)
    attempt = open_attempt(run, config, solve_batch(config, Shape(1, 1)))
    slurm = {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NTASKS": "1", "SLURMD_NODENAME": "127.0.0.1"}
    ranked = installed.program("slurm.job.rank_entry", run.path, LOCKSTEP_ATTEMPT=str(attempt.number), **slurm)
    assert ranked.returncode == 0, ranked.stderr + story(run)
    assert End.read(attempt.end_path).reason == "finished"
    assert (run.pipeline_path / "unet/diffusion_pytorch_model.safetensors").is_file()
    assert NOT_OURS not in story(run)


def test_the_digest_is_the_clone_s(installed: Installed) -> None:
    code = "import lockstep; from store.run.code_version import read_code_version as read; print(read().digest)"
    assert installed.run("python", "-P", "-c", code).stdout.strip() == code_version.read_code_version().digest
    assert entry.PACKAGES == code_version.PACKAGES


def run_entry_in(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """lockstep.py beside the packages that lie in `folder`, with impostors before them on PYTHONPATH."""
    shutil.copy(ROOT / "lockstep.py", folder)
    path = os.pathsep.join(map(str, (write_impostors(folder / "impostors"), folder)))
    command = [sys.executable, "-P", "-m", "lockstep", *words]
    return subprocess.run(
        command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
def test_a_process_that_multiprocessing_starts_finds_ours(tmp_path: Path, method: str) -> None:
    """As a data loader's workers are started, by another method from Python 3.14 on."""
    package = tmp_path / "lockstep_packages" / "train"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "work.py").write_text("def square(x):\n    return x * x\n")
    (package / "many.py").write_text(
        "import multiprocessing, sys\n"
        "from concurrent.futures import ProcessPoolExecutor\n"
        "from train.work import square\n"
        "if __name__ == '__main__':\n"
        "    with ProcessPoolExecutor(1, multiprocessing.get_context(sys.argv[1])) as pool:\n"
        "        print(pool.submit(square, 7).result())\n"
        "    sys.exit(3)\n"
    )
    done = run_entry_in(tmp_path, "train.many", method)
    assert (done.stdout, done.returncode) == ("49\n", 3), done.stderr


def test_a_package_of_ours_that_is_gone_is_nobody_else_s(tmp_path: Path) -> None:
    (tmp_path / "lockstep_packages").mkdir()
    done = run_entry_in(tmp_path, "train")
    assert (done.returncode, done.stdout) == (1, "")
    assert f"{tmp_path}/lockstep_packages holds no train: install Lockstep again" in done.stderr


def test_a_clone_is_found_where_its_parent_is_on_the_path(tmp_path: Path) -> None:
    """A folder named lockstep is no package, though Python takes it for one where nothing else is called so."""
    (tmp_path / "lockstep").mkdir()
    done = lockstep("--help", PYTHONPATH=str(tmp_path))
    assert (done.returncode, done.stderr) == (0, "")


def test_no_process_is_started_past_the_entry() -> None:
    past = re.compile(rf'-m"?,? f?"?(?:{"|".join(entry.PACKAGES)})\b')
    for package in entry.PACKAGES:
        for file in (ROOT / package).rglob("*.py"):
            assert not past.search(file.read_text(encoding="utf-8")), file
