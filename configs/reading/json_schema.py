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
    }
    schema["required"].remove("name")  # the file's name stands in for it
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"
