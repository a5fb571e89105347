"""Model cards, and pushing a model with its evidence to the Hub."""
