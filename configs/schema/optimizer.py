"""The group of keys about the optimizer."""

from typing import Annotated, Literal

from pydantic import Field

from configs.schema.base import RESULT, RUN, Section


class OptimizerConfig(Section):
    """AdamW (Loshchilov and Hutter 2019), the same with moments of 8 bits (Dettmers et al. 2022), or Adafactor (Shazeer
    and Stern 2018)."""

    name: Literal["adamw", "adamw_8bit", "adafactor"] = Field(
        "adamw",
        description="adamw; adamw_8bit: with moments of 8 bits, by bitsandbytes, which lockstep[8bit] installs; "
        "adafactor: with row and column means of the second moment alone (torch.optim.Adafactor), for zero: 0 or one "
        "GPU; its lr is a share of each parameter's root mean square, 1e-3 or so",
        json_schema_extra=RUN,
    )
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = Field(
        (0.9, 0.999),
        description="AdamW's decay rates of the first and second moment",
        strict=False,
        json_schema_extra=RESULT,
    )
    eps: float = Field(1e-8, gt=0, description="AdamW's epsilon", json_schema_extra=RESULT)
    weight_decay: float = Field(1e-2, ge=0, description="decoupled weight decay", json_schema_extra=RESULT)
    decay: Literal["all", "matrices"] = Field(
        "all",
        description="which parameters weight_decay acts on: all, or those of two or more dimensions (matrices), and so "
        "not norms and biases",
        json_schema_extra=RESULT,
    )
    beta2_decay: float = Field(
        -0.8,
        le=0,
        description="Adafactor: step t forgets a share of t to this power of the second moment",
        json_schema_extra=RESULT,
    )
    clip_threshold: float = Field(
        1.0,
        ge=1,
        description="Adafactor: largest root mean square of a parameter's update, before lr scales it",
        json_schema_extra=RESULT,
    )
