"""Measurements: each is a command, each number has hardware, date, commit and command beside it."""
