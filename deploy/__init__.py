"""Deployment: container images, Compose, Kubernetes, and the retraining loop."""
