"""Benchmarks: each one is a command, and each result records hardware, date, commit and command."""
