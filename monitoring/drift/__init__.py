"""Drift detection: compare a window of sampled images with the reference of the version that answered."""
