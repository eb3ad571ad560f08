"""Score millions of images offline, with the server's decoder and ONNX session on Ray Data."""
