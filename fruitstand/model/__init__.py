"""The model itself: its weights in PyTorch, its normalisation, and its ONNX files in ONNX Runtime."""
