"""Artifacts: ONNX, TensorRT, Core ML, and the kit that travels to a board."""

from edgeconvnext.command_package import make_callable

make_callable(__name__)
