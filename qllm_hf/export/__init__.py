"""Packed checkpoints in the formats of other programs: compressed-tensors, and plain floating point."""
