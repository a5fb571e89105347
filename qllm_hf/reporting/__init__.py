"""What quantization did to a model: bytes, bits, coverage, what stayed in floating point and why."""
