"""What a model repository is: versions, manifests, signatures, and what its configurations may say."""
