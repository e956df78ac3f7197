"""The converter: turns checkpoints into bundles, without torch."""
