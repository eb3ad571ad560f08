"""Drift detection: windows of sampled images against the reference of the version that answered."""
