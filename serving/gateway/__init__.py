"""Envoy in front of the servers: who may call what, how often, and where calls go."""
