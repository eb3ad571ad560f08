"""Checkpoint in, verified and published model version out."""
