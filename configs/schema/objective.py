"""What is learnt of a sample: what the UNet predicts, how its error counts, and at which timesteps."""

from typing import Literal

from pydantic import Field

from configs.schema.base import RUN, Section

Prediction = Literal["epsilon", "v_prediction", "sample"]
LossWeighting = Literal["uniform", "min_snr", "soft_min_snr", "debiased"]
WITH_GAMMA: tuple[LossWeighting, ...] = ("min_snr", "soft_min_snr")  # the weightings that min_snr_gamma is for


class TimestepsConfig(Section):
    """How the timestep of a sample is drawn, each time that it is seen."""

    distribution: Literal["uniform", "logit_normal"] = Field(
        "uniform",
        description="how often each timestep is drawn: all the same (uniform), or those in the middle more often, as "
        "mean and std say (logit_normal; Esser et al. 2024)",
        json_schema_extra=RUN,
    )
    mean: float = Field(
        0.0,
        description="of logit_normal: 0 prefers the middle of the timesteps, more than 0 those with more noise, less "
        "than 0 those with less",
        json_schema_extra=RUN,
    )
    std: float = Field(1.0, gt=0, description="of logit_normal: how far the timesteps spread", json_schema_extra=RUN)
    first: int = Field(
        0,
        ge=0,
        description="lowest timestep that is drawn, the one with the least noise; the distribution is laid over the "
        "timesteps from first to last",
        json_schema_extra=RUN,
    )
    last: int | None = Field(
        None,
        ge=0,
        examples=[499],
        description="highest timestep that is drawn; null: the scheduler's last, 999 in Stable Diffusion",
        json_schema_extra=RUN,
    )
    stratified: bool = Field(
        False,
        description="spread the timesteps of each batch evenly over the distribution: one in each of as many equally "
        "likely parts as the batch has samples",
        json_schema_extra=RUN,
    )
