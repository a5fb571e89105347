"""Many schemes and tasks on one model, each once."""
