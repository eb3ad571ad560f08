"""Network connections of this project: gRPC channels, HTTP pages, TLS."""
