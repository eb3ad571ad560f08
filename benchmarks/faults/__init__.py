"""The same faults on this project's stack and on its peers: python -m benchmarks.faults."""
