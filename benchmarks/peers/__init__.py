"""Compare our server with other Python model servers: python -m benchmarks.peers."""
