"""What quantization costs in five groups of abilities: tasks, the engine that runs them (lm_eval), and scores."""
