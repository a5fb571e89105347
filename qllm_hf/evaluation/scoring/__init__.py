"""From what a model wrote, or found likely, to scores: one implementation for the engine and the evaluate modules."""
