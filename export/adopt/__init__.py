"""Adopt external models: turn an ONNX file or a timm model into a version without a training run."""
