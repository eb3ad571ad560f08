"""The ONNX files of a version: fp32, fp16 and int8."""
