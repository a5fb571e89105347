"""What the tensors of a model look like, and which bits they bear."""
