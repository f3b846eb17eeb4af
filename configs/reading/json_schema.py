"""The config's JSON Schema: the manual of every key, and what editors complete and check by."""

import json
from typing import Any

from configs.schema import RunConfig


def render_json_schema() -> str:
    """The schema as JSON text, the same bytes for the same models."""
    schema: dict[str, Any] = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **RunConfig.model_json_schema(by_alias=True),
        "title": "A Lockstep run",
        "$comment": "`changes` says what another value of a key changes: run (another run, which a resume refuses), "
        "result (the same run with another curve, length or pipeline), cost (only how the same is computed and kept) "
        "or view (only what is shown, and under which name and where).",
    }
    schema["required"].remove("name")  # the file's name stands in for it
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"
