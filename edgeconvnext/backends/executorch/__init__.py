"""ExecuTorch: .pte files for XNNPACK, for phones and small boards."""
