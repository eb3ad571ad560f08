"""The model: weights in PyTorch, normalisation, and ONNX Runtime sessions."""
