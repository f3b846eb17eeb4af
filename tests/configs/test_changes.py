"""What another value of a key changes: every key says so, once."""

import json
from typing import Any, get_args

from configs.changes import Mark, get_mark, select_values
from configs.reading.json_schema import render_json_schema
from configs.reading.messages import find_field, list_keys
from configs.schema import RunConfig, get_section

MARKS = get_args(Mark)
LEAST: dict[str, Any] = {"name": "a", "model": "org/model", "data": {"images": "/images"}}


def test_every_key_has_one_mark() -> None:
    """A section that is always there has none of its own."""
    for key in list_keys(RunConfig):
        field = find_field(RunConfig, tuple(key.split(".")))
        assert field is not None
        if get_section(field) is None or type(None) in get_args(field.annotation):
            assert get_mark(field) in MARKS, f"{key} says not what it changes"
        else:
            assert get_mark(field) is None, f"{key} is a section that is always there"


def test_the_schema_documents_the_marks() -> None:
    schema = json.loads(render_json_schema())
    assert schema["properties"]["lr"]["changes"] == "result"
    assert schema["$defs"]["DataConfig"]["properties"]["resolution"]["changes"] == "run"
    assert all(f"{mark} (" in schema["$comment"] for mark in MARKS)


def test_every_value_is_under_its_mark_and_under_no_other() -> None:
    config = RunConfig(**LEAST, ema=True)
    parts = [select_values(config, (mark,), {}) for mark in MARKS]
    together = select_values(config, MARKS, {})
    assert sum(map(len, parts)) == len(together)
    assert {key for key in list_keys(RunConfig) if key not in together} == {
        "data",
        "timesteps",
        "optimizer",
        "checkpoint",
        "cluster",
    }
    assert (together["ema"], together["ema.decay"], together["optimizer.betas"]) == (True, 0.9999, [0.9, 0.999])
    assert (together["pictures"], together["pictures.prompts"]) == (False, None)


def test_a_meaning_takes_the_place_of_a_spelling() -> None:
    config = RunConfig(**LEAST)
    assert select_values(config, ("run",), {"model": "/snapshot"})["model"] == "/snapshot"
    assert "model" not in select_values(config, ("view",), {"model": "/snapshot"})
