"""Connections that this project opens: gRPC channels, pages, TLS."""
