"""Post-training quantization: statistics, ranges, grids, and the Q/DQ graph."""

import logging

# Importing torchao remarks on GPU kernels that a CPU build lacks and on torch's own deprecations; neither is the user's concern.
for _name in ("torchao", "torch.utils._pytree"):
    logging.getLogger(_name).setLevel(logging.ERROR)
