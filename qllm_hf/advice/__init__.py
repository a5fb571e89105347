"""Which scheme to use: published rules, published data, measured data, memory and speed, and one choice."""
