"""Models from elsewhere: an ONNX file or a timm model becomes a candidate without a training run."""
