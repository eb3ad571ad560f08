"""What runs fruitstand on other machines: its images, Compose, Kubernetes, and the loop of retraining."""
