"""The inference engine without Triton: the DALI decoder and the ONNX Runtime session."""
