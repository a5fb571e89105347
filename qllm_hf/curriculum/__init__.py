"""The small world that the reference model was trained on, and is tested in: questions with answers, from a seed."""
