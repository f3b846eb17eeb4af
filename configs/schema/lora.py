"""The group of keys that train low-rank adapters (LoRA) in the place of the UNet's own weights."""

import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PlainValidator, WithJsonSchema

from configs.schema.base import RUN, Section

Targets = Literal["attention", "all-linear"] | list[str]


def _check_dropout(value: Any) -> Any:
    if value != 0:
        raise ValueError(
            "must be 0 (a dropout layer would draw by rank and micro-batch, and what is random about a sample belongs "
            "to its position)"
        )
    return value


def _parse_targets(value: Any) -> Targets:
    """`attention`, `all-linear`, or a list of patterns."""
    if value in ("attention", "all-linear"):
        return value  # type: ignore[no-any-return]
    if not isinstance(value, list) or not value or not all(isinstance(pattern, str) and pattern for pattern in value):
        raise ValueError("must be attention, all-linear, or a list of layers' names, such as [to_q, to_v]")
    for pattern in value:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"must hold names or regular expressions, and {pattern} is none ({error})") from None
    return value


class LoraConfig(Section):
    """Low-rank adapters (Hu et al. 2021): a layer W answers W x + (alpha / rank) · B A x; only A and B are trained."""

    rank: int = Field(16, ge=1, description="rank of the adapters: rows of A, columns of B", json_schema_extra=RUN)
    alpha: float | None = Field(
        None,
        gt=0,
        examples=[16],
        description="strength of the adapters: their product is multiplied by alpha / rank; null: the rank",
        json_schema_extra=RUN,
    )
    targets: Annotated[
        Targets,
        PlainValidator(_parse_targets),
        WithJsonSchema(
            {
                "anyOf": [
                    {"enum": ["attention", "all-linear"], "type": "string"},
                    {"items": {"minLength": 1, "type": "string"}, "minItems": 1, "type": "array"},
                ]
            }
        ),
    ] = Field(
        "attention",
        examples=[["to_q", "to_v", "mid_block\\..*conv1"]],
        description="layers that get an adapter: queries, keys, values and outputs of all attentions (attention); "
        "every linear layer, those of the timestep's embedding as well (all-linear, as peft has it); or a list of "
        "linear and convolution layers: names, ends of names, or regular expressions",
        json_schema_extra=RUN,
    )
    dropout: Annotated[float, BeforeValidator(_check_dropout)] = Field(
        0.0, description="share of an adapter's inputs that are dropped; only 0", json_schema_extra=RUN
    )
    dora: bool = Field(
        False,
        description="also train how long each of the layer's weight vectors is (DoRA; Liu et al. 2024); slower",
        json_schema_extra=RUN,
    )

    @property
    def effective_alpha(self) -> float:
        """alpha, whether or not it is written."""
        return float(self.rank if self.alpha is None else self.alpha)
