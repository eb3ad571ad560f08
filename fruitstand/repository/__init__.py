"""The model repository: versions, manifests, signatures, and allowed configuration keys."""
