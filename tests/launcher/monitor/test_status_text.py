"""The table of `lockstep status`, as people read it."""

import re
from pathlib import Path

from launcher.monitor.status_text import render_statuses
from store.run.end import End
from tests.launcher.folders import STEPS, add_attempt, make_run
from tests.shell import lockstep


def test_the_head_is_in_the_field_s_words(tmp_path: Path) -> None:
    add_attempt(make_run(tmp_path, "mine"), end=End("finished", STEPS, "step"), step=STEPS)
    head, row = lockstep("status", tmp_path / "mine").stdout.splitlines()
    columns = ["run", "state", "attempt", "step", "loss", "ETA", "time left", "reported by", "detail"]
    assert re.split(r"  +", head) == columns
    assert row[: head.index("attempt")].split() == ["mine", "finished"]
    assert row[head.index("reported by") :].split() == ["records"], "what is not known is left empty"


def test_several_runs_are_counted_by_state(tmp_path: Path) -> None:
    for name in ("one", "two"):
        add_attempt(make_run(tmp_path, name), end=End("finished", STEPS, "step"), step=STEPS)
    make_run(tmp_path, "three")
    assert lockstep("status", tmp_path).stdout.splitlines()[-1] == "3 runs: 2 finished, 1 not begun"


def test_no_run_is_a_table_without_rows() -> None:
    assert len(render_statuses([]).splitlines()) == 1
