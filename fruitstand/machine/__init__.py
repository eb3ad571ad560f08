"""The machine a command runs on: threads, memory, hardware, and the provenance of a measurement."""
