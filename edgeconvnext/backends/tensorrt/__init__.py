"""TensorRT and TensorRT-RTX: strongly typed ONNX and engines."""
