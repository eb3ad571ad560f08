"""One file a peer, run in the peer's own environment."""
