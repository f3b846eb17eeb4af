import os
from pathlib import Path

import pytest

from configs.errors import UserError
from store.dataset.sources.places import find_files, read_times
from store.dataset.sources.tar_shards import TarShards
from tests.store.dataset.sources.test_tar_shards import PAIR, write_tar


def refusal(place: Path) -> str:
    with pytest.raises(UserError) as caught:
        list(TarShards(str(place), None).list_parts())
    return str(caught.value)


def test_a_link_that_leads_nowhere_is_not_passed_over(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", PAIR)
    (tmp_path / "b.tar").symlink_to("/nowhere")
    for place in (tmp_path, tmp_path / "*.tar"):
        assert refusal(place).startswith(f"{tmp_path}/b.tar: links to /nowhere, which is not there")


def test_a_pipe_is_not_waited_on(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.tar")
    assert refusal(tmp_path) == f"{tmp_path}/a.tar: is no regular file"


def test_a_name_that_is_no_utf_8(tmp_path: Path) -> None:
    with open(os.fsencode(tmp_path) + b"/caf\xe9.tar", "wb"):
        pass
    assert refusal(tmp_path) == f"{tmp_path}/caf\\udce9.tar: its name is not UTF-8, or does not print; rename it"


def test_a_pattern_below_other_patterns(tmp_path: Path) -> None:
    for name in ("x[1]/a-0.tar", "x[1]/sub/a-1.tar", "x[1]/b.tar", "x[1]/sub/.a-2.tar"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    root, names = find_files("tars", f"{tmp_path}/x[1]/**/a-?.tar", (".tar",))
    assert (root, names) == (tmp_path / "x[1]", ["a-0.tar", "sub/a-1.tar"])


def test_what_comes_or_goes_is_seen_by_times(tmp_path: Path) -> None:
    write_tar(tmp_path / "sub/a.tar", PAIR)
    before = read_times(tmp_path, ["sub/a.tar"])
    assert set(before) == {tmp_path, tmp_path / "sub", tmp_path / "sub/a.tar"}
    os.utime(tmp_path / "sub", (0, 0))
    assert read_times(tmp_path, ["sub/a.tar"]) != before
