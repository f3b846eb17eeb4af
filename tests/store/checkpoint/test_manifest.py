"""A manifest is read by every version of its schema, and a newer one is no damage."""

import json
from dataclasses import replace

import pytest

from configs.errors import LockstepError
from store.checkpoint import manifest as module
from store.checkpoint.manifest import FileEntry, Identity, Manifest

MANIFEST = Manifest(
    identity=Identity("mine", 40, 2, "nonce", "layout"),
    world_size=2,
    zero=2,
    kinds=("weights", "exp_avg"),
    optimizer_step=39,
    skipped_steps=1,
    loss_scaler=None,
    files=(FileEntry("fragments-00000.safetensors", 10, "d1ge57"),),
)


def write(**changes: object) -> str:
    """A manifest of another version, whole by its own digest."""
    body = json.loads(MANIFEST.to_text()) | changes
    del body["digest"]
    return json.dumps(body | {"digest": module._digest(body)})


def test_it_is_read_as_it_was_written() -> None:
    assert Manifest.from_text(MANIFEST.to_text()) == MANIFEST
    other = replace(MANIFEST, kinds=("weights", "row_var"), layouts={"row_var": "d1ge57"})
    assert Manifest.from_text(other.to_text()) == other


def test_a_field_of_another_version_is_ignored() -> None:
    assert Manifest.from_text(write(compression="none")) == MANIFEST


def test_one_of_a_time_with_one_engine_and_one_optimizer_is_theirs() -> None:
    body = json.loads(MANIFEST.to_text())
    del body["digest"], body["engine"], body["layouts"]
    assert Manifest.from_text(json.dumps(body | {"digest": module._digest(body)})) == MANIFEST
    assert Manifest.from_text(write(engine="fsdp2", zero=None)) == replace(MANIFEST, engine="fsdp2", zero=None)


def test_a_newer_schema_is_no_damage() -> None:
    with pytest.raises(LockstepError, match=r"a newer Lockstep saved it \(schema 2, .*update Lockstep"):
        Manifest.from_text(write(schema=2))


@pytest.mark.parametrize("text", ["", "[]", "{}", MANIFEST.to_text()[:100], MANIFEST.to_text().replace("39", "38")])
def test_damage(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not a manifest|does not match"):
        Manifest.from_text(text)
