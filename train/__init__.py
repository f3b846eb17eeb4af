"""What happens on a rank: model, objective, stream, engine, metrics, export, demo."""

import logging

# diffusers imports torchao where it is installed, and peft bitsandbytes; they warn of what others would need.
for _name in ("torchao", "torch.utils._pytree", "bitsandbytes"):
    logging.getLogger(_name).setLevel(logging.ERROR)
