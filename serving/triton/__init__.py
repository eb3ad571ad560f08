"""The embedded tritonserver: start, readiness, diagnosis of the machine."""
