"""How fast a scheme runs here: prefill, decode and end to end, measured."""
