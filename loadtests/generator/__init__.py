"""What a Locust worker does and records."""
