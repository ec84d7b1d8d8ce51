"""OpenVINO: IR files for Intel processors, GPUs and NPUs."""
