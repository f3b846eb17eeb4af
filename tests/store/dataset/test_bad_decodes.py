"""What a run knows of its bad samples: from the lists of all ranks and attempts, up to where it goes on."""

from pathlib import Path

import pytest

from configs.errors import LockstepError
from store.dataset.bad_decodes import BadDecode, list_bad_decodes
from store.dataset.sample import BadSample
from store.run.run_dir import RunDir


def write_list(run: RunDir, number: int, rank: int, *found: tuple[str, int], end: str = "") -> Path:
    attempt = run.attempt(number)
    path = attempt.bad_samples_path(rank)
    path.parent.mkdir(parents=True, exist_ok=True)
    attempt.plan_path.touch()
    lines = [BadDecode(BadSample(name, f"{name}: ends early"), position).format_line() for name, position in found]
    path.write_text("".join(lines) + end)
    return path


def test_each_is_known_once_by_its_first_position(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    write_list(run, 1, 0, ("a\u2028\n.png", 17), ("b.png", 40))
    write_list(run, 1, 1, ("b.png", 21), ("c.png", 55))
    write_list(run, 2, 0, ("a\u2028\n.png", 31), ("d.png", 30))
    known = [(found.sample.name, found.position) for found in list_bad_decodes(run, 50)]
    assert known == [("a\u2028\n.png", 17), ("b.png", 21), ("d.png", 30)]
    assert list_bad_decodes(run, 50)[0].sample.problem == "a\u2028\n.png: ends early"
    assert list_bad_decodes(run, 17) == []


def test_half_a_line_at_the_end_is_left_out_and_any_other_is_named(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    write_list(run, 1, 0, ("a.png", 3), end='{"sample": "b.pn')
    assert [found.sample.name for found in list_bad_decodes(run, 50)] == ["a.png"]
    path = write_list(run, 1, 1, ("a.png", 3), end='{"sample": "b.png"}\n')
    with pytest.raises(LockstepError, match=rf"{path}:2: is damaged .*; remove the line"):
        list_bad_decodes(run, 50)
