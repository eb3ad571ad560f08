"""What computes answers: the DALI decoder and the ONNX Runtime session, without Triton."""
