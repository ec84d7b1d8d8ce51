"""Kernels run in Triton's interpreter here: on a CPU, one program after the other, with the arithmetic of the GPU's."""

import os

os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel is defined, so before any test imports one
