"""Checkpoints of other libraries as ours: the same integers and the same scales, packed anew, never through floats."""
