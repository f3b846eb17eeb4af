"""Where a run's metrics go, in a folder in which others may put what they like."""

import pytest

from configs.errors import LockstepError
from store.run.run_dir import RunDir
from train.reporting.metrics_writer import MetricsWriter


def test_metrics_are_not_written_through_a_link(tmp_path):
    run = RunDir(tmp_path / "run")
    attempt = run.open_attempt()
    profile = tmp_path / "profile"
    run.metrics_path.symlink_to(profile)
    with pytest.raises(LockstepError, match=r"metrics.jsonl: is a link to .*profile"):
        MetricsWriter(run, attempt, 1)
    assert not profile.exists()
