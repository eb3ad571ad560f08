"""Serve a model repository with the real tritonserver, with or without docker and GPU."""
