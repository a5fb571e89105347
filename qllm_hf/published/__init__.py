"""The scores that the study published, and the survey's speed-ups, as data."""
