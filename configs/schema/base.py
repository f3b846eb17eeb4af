"""What all sections of the config have in common: how they are read, and what another value of a key changes."""

import typing

from pydantic import BaseModel, ConfigDict
from pydantic.config import JsonDict
from pydantic.fields import FieldInfo

# What another value of a key changes. Every key bears one of these marks, from which follow what a resume refuses, what
# a sweep trains again, and what is left open in a run's own config; see configs/changes.py.
RUN: JsonDict = {"changes": "run"}  # another run: a resume refuses it
RESULT: JsonDict = {"changes": "result"}  # the same run with another curve, length or pipeline: a sweep trains it again
COST: JsonDict = {"changes": "cost"}  # only how the same is computed and kept: time, memory, disk
VIEW: JsonDict = {"changes": "view"}  # only what is shown, and under which name and where


class Section(BaseModel):
    """A part of the config: unknown keys are refused, numbers must be numbers, values do not change once read."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        validate_default=True,
        protected_namespaces=(),
    )


def get_section(field: FieldInfo) -> type[Section] | None:
    """The section that a key holds, also where it may be null; None for a key with a value of its own."""
    for part in (field.annotation, *typing.get_args(field.annotation)):
        if isinstance(part, type) and issubclass(part, Section):
            return part
    return None


def get_entry_section(field: FieldInfo) -> type[Section] | None:
    """The section that each entry of a list is; None for a key that holds no list of sections."""
    for part in (field.annotation, *typing.get_args(field.annotation)):
        entries = typing.get_args(part) if typing.get_origin(part) is list else ()
        if entries and isinstance(entries[0], type) and issubclass(entries[0], Section):
            return entries[0]
    return None
