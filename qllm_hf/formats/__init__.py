"""How other programs lay out quantized weights: the arithmetic alone, without files and without models."""
