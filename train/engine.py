"""DeepSpeed's engine around the UNet: the sharding is its, the optimizer and the learning rate are ours."""

from typing import Any

import deepspeed
import torch
from torch.optim import AdamW

from configs.manifest import layout_of
from configs.schema import RunConfig
from train import fragments, zero3_linear


class Engine:
    """One UNet under ZeRO. `sizes` are the trained parameters' elements, `layout` is their digest on any world size."""

    def __init__(self, unet: torch.nn.Module, config: RunConfig, rendered: dict[str, Any], device: torch.device):
        parameters = [parameter for parameter in unet.parameters() if parameter.requires_grad]
        self.sizes = {name: p.numel() for name, p in unet.named_parameters() if p.requires_grad}
        base = {} if config.precision == "fp32" else {n: p.detach().clone() for n, p in unet.named_parameters()}
        optimizer = AdamW(
            parameters,
            lr=config.lr,
            betas=config.optimizer.betas,
            eps=config.optimizer.eps,
            weight_decay=config.optimizer.weight_decay,
            fused=device.type == "cuda" and not config.offload,
        )
        if config.zero == 3:
            zero3_linear.round_as_torch()
        self.deepspeed, *_ = deepspeed.initialize(
            model=unet, optimizer=optimizer, config=rendered, dist_init_required=False
        )
        fragments.self_test(self.deepspeed)
        self.stage, self.grad_clip = config.zero, config.grad_clip
        if self.stage == 0:  # DeepSpeed would clip without keeping the norm; a second one takes 3 % of a CPU's step
            fragments.clip_with(self.deepspeed, self._clip)
        self.accumulation = int(rendered["gradient_accumulation_steps"])
        self.owned = fragments.owned_fragments(self.deepspeed)
        self.held = fragments.held_fragments(self.deepspeed)
        fragments.set_masters(self.held, base)
        self.layout = layout_of(self.sizes)

    @property
    def unet(self) -> torch.nn.Module:
        return self.deepspeed.module

    def set_learning_rate(self, rate: float) -> None:
        for group in self.deepspeed.basic_optimizer.param_groups:
            group["lr"] = rate

    def backward(self, loss: torch.Tensor) -> None:
        """Add one micro-batch's gradients: its mean loss, weighted 1 / (accumulation × world size)."""
        self.deepspeed.backward(loss)

    def step(self) -> None:
        """Close one micro-batch; after the last of the step: reduce, clip, update, clear."""
        self.deepspeed.step()

    def _clip(self) -> None:
        self._norm = torch.nn.utils.clip_grad_norm_(self.unet.parameters(), self.grad_clip)

    def gradient_norm(self) -> float:
        """Global norm of the last step's gradient, before clipping."""
        return float(self._norm if self.stage == 0 else self.deepspeed.get_global_grad_norm())
