"""Pictures of results, each with the table it was drawn from."""
