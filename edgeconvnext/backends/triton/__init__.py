"""A quantised ConvNeXt as Triton kernels for NVIDIA GPUs: int8 between the layers of a block, one kernel for each.

No backend: it writes no artifact. `bench` runs the network of a finished run with it.
"""

import sys

from edgeconvnext.backends.base import RuntimePackage


def packages() -> tuple[RuntimePackage, ...]:
    """Return the packages that the kernels need, for `doctor`."""
    install = "pip install 'edgeconvnext[triton]'"
    return (
        RuntimePackage(
            "triton",
            "runs a quantised network on an NVIDIA GPU without TensorRT (bench --runtime triton)",
            "Triton is made for Linux" if sys.platform == "darwin" else install,
        ),
    )
