"""What can be read from the texts that a model wrote: how they fail, whether they decline, where a calculation errs."""
