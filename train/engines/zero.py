"""DeepSpeed's engine around the UNet: the sharding is its, the optimizer and the learning rate are ours."""

import math
from typing import Any

import deepspeed
import torch
from torch.optim import AdamW

from configs.schema import RunConfig
from configs.solve.deepspeed import gradient_divisor
from store.checkpoint.manifest import digest_layout
from train.engines import zero3_linear, zero_state


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
            fused=True,  # on a CPU, too, where it takes a ninth of the time
        )
        optimizer.register_step_pre_hook(self._take_mean)
        if config.zero == 3:
            zero3_linear.round_as_torch()
        self.deepspeed, *_ = deepspeed.initialize(
            model=unet, optimizer=optimizer, config=rendered, dist_init_required=False
        )
        zero_state.self_test(self.deepspeed)
        zero_state.keep_smallest_loss_scale(self.deepspeed)
        self.stage, self.offload = config.zero, config.offload
        if self.stage == 0:  # DeepSpeed would clip without keeping the norm; a second one takes 3 % of a CPU's step
            zero_state.clip_with(self.deepspeed, self._clip)
        self.accumulation = int(rendered["gradient_accumulation_steps"])
        self.gradient_divisor = gradient_divisor(rendered)
        self.largest_sum_norm = float(rendered["gradient_clipping"])
        self.owned = zero_state.owned_fragments(self.deepspeed)
        self.held = zero_state.held_fragments(self.deepspeed)
        zero_state.set_masters(self.held, base)
        self.layout = digest_layout(self.sizes)

    @property
    def unet(self) -> torch.nn.Module:
        return self.deepspeed.module

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The trained module's forward pass."""
        return self.deepspeed(*args, **kwargs)

    def set_learning_rate(self, rate: float) -> None:
        for group in self.deepspeed.basic_optimizer.param_groups:
            group["lr"] = rate

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradient of one micro-batch's mean loss."""
        self.deepspeed.backward(loss, scale_wrt_gas=False)

    def step(self) -> None:
        """Close one micro-batch; after the last of the step: reduce, clip, update, clear.

        A step whose gradient is not finite updates nothing, on any rank; `skipped` tells.
        """
        is_last = self.deepspeed.is_gradient_accumulation_boundary()
        self.deepspeed.step()
        if is_last and self.offload and self.skipped:
            zero_state.drop_gradients(self.deepspeed)

    @property
    def skipped(self) -> bool:
        """Whether the last step updated nothing, since its gradient was not finite. The same on every rank."""
        return not self._sum_is_finite if self.stage == 0 else not self.deepspeed.was_step_applied()

    @property
    def skipped_steps(self) -> int:
        """Steps that updated nothing before this attempt, as the checkpoint had it: to be read once, after a resume."""
        return int(self.deepspeed.skipped_steps)

    @property
    def loss_scale(self) -> float | None:
        """fp16's, as it is now; None in another precision."""
        scaler = zero_state.loss_scaler(self.deepspeed)
        return scaler["cur_scale"] if scaler else None

    def gradient_norm(self) -> float:
        """Global norm of the last step's mean gradient before clipping; infinite where the step was skipped."""
        if self.skipped:
            return math.inf
        sum_norm = self._sum_norm if self.stage == 0 else self.deepspeed.get_global_grad_norm()
        return float(sum_norm) / self.gradient_divisor

    def _clip(self) -> None:
        """ZeRO 0: clip, or take away a gradient that is not finite, so that AdamW updates nothing."""
        self._sum_norm = torch.nn.utils.clip_grad_norm_(self.unet.parameters(), self.largest_sum_norm)
        self._sum_is_finite = bool(torch.isfinite(self._sum_norm))
        if not self._sum_is_finite:
            self.unet.zero_grad(set_to_none=True)

    def _take_mean(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        """Make the mean of the sum that was reduced and clipped: fp32 in every stage, just before AdamW reads it."""
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        if gradients and self.gradient_divisor > 1:
            torch._foreach_div_(gradients, self.gradient_divisor)
