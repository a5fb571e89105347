"""What a scheme takes: bytes of weights and of the KV cache, and seconds on a named device."""
