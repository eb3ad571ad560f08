"""What people would otherwise use, beside this project's stack: python -m benchmarks.peers."""
