"""ONNX: what the backends that write it share."""
