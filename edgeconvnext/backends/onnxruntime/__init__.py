"""onnxruntime: ONNX files in the forms it fuses."""
