"""Fruits-360 in, checkpoint out: prepare, train, evaluate."""
