"""A quantised ConvNeXt as Triton kernels for NVIDIA GPUs: int8 between the layers of a block, one kernel for each."""
