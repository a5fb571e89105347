"""How other libraries multiply with a quantized weight on a CPU, behind the same few functions, and their timing."""
