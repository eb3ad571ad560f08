"""Load tests: Locust users that send images over gRPC, NVIDIA's perf_analyzer, and what explains both."""
