"""One training run: configuration, model, augmentation, loop, checkpoints."""
