"""Sweeps on the real cluster: a job array whose tasks are runs like any other."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from configs.errors import UserError
from launcher.submit.sweep import list_points
from store.run.run_dir import RunDir
from tests.slurm.runs import Cluster, Run, lines


@pytest.fixture(scope="module")
def cluster(lab) -> Iterator[Cluster]:
    folder = Path(tempfile.mkdtemp(prefix="sw-", dir="/tmp"))
    try:
        cluster = Cluster(lab, folder)
        yield cluster
        cluster.clear()
    finally:
        shutil.rmtree(folder)


def test_every_combination_is_a_run_of_its_own(tmp_path: Path) -> None:
    file = tmp_path / "base.yaml"
    file.write_text("model: me/mine\ndata: {images: .}\nbatch: 4\nsteps: 3\n")
    found = list_points(str(file), ["lr=1e-5,2e-5", "seed=0,1", "optimizer.betas=[0.9,0.99]"])
    assert [point.config.name for point in found] == [
        "base-lr-1e-5-seed-0",
        "base-lr-1e-5-seed-1",
        "base-lr-2e-5-seed-0",
        "base-lr-2e-5-seed-1",
    ]
    assert [(point.config.lr, point.config.seed) for point in found] == [(1e-5, 0), (1e-5, 1), (2e-5, 0), (2e-5, 1)]
    assert {point.config.optimizer.betas for point in found} == {(0.9, 0.99)}
    for words, said in ((["lr=1e-5"], "several values"), (["lr=1e-5,1e-5"], "both be"), (["lr=1e-5,x"], "lr")):
        with pytest.raises(UserError, match=said):
            list_points(str(file), words)


def test_a_sweep_is_one_array_and_nothing_is_trained_twice(cluster: Cluster) -> None:
    base = cluster.new_run("sweep", steps=30, cluster={"nodes": 1})

    def swept(*words: str) -> dict[str, str]:
        done = cluster.lockstep("sweep", base.file, *words)
        assert done.returncode == 0, done.stderr
        return dict(line.split(" ", 1) for line in done.stdout.splitlines())

    first = swept("lr=1e-4,2e-4")
    runs = {name: Run(cluster, base.file, RunDir(cluster.folder / "runs" / name)) for name in first}
    assert sorted(runs) == ["sweep-lr-1e-4", "sweep-lr-2e-4"]
    array = runs["sweep-lr-1e-4"].job.partition("_")[0]
    assert [run.job for run in runs.values()] == [f"{array}_0", f"{array}_1"]
    again = swept("lr=1e-4,2e-4")
    assert all(f"is job {runs[name].job} already" in said for name, said in again.items()), again

    killed = runs["sweep-lr-2e-4"]
    killed.trains(steps=6)
    killed.rank(0).kill()  # one task of the array comes back, by itself
    for run in runs.values():
        assert run.finish() == "COMPLETED", run.story()
    assert runs["sweep-lr-1e-4"].ends() == ["finished"]
    assert killed.ends() == [None, "finished"]
    losses = [[line["loss/train"] for line in lines(run.dir.metrics_path)] for run in runs.values()]
    assert [len(found) for found in losses] == [30, 30]
    assert losses[0] != losses[1]

    more = swept("lr=1e-4,3e-4")
    assert "is finished" in more["sweep-lr-1e-4"]
    assert "_" not in more["sweep-lr-3e-4"].split(";")[0], "one run is a job like any other"
    twin = cluster.new_run("other", steps=30, cluster={"nodes": 1})
    same = cluster.lockstep("sweep", twin.file, "lr=1e-4,2e-4")
    assert same.returncode == 0, same.stderr
    assert f"other-lr-1e-4 is finished: {runs['sweep-lr-1e-4'].dir.path} is the same" in same.stdout
    assert not (cluster.folder / "runs" / "other-lr-1e-4").exists()
