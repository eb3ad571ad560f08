"""The machine that a command runs on: threads, memory, hardware, provenance."""
