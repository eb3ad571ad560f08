"""Load tests: Locust users that send images over gRPC."""
