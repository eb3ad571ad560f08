"""Score millions of images offline: the served decode and ONNX session in an actor pool of Ray Data."""
