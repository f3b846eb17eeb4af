"""What happens on a rank: model, objective, stream, engine, metrics, export, demo."""

import logging

# diffusers imports torchao where it is installed, and that warns of what it would only need for other things.
for _name in ("torchao", "torch.utils._pytree"):
    logging.getLogger(_name).setLevel(logging.ERROR)
