"""The questions of each benchmark: rows as their authors published them -> what the model is asked.

A function takes rows and few-shot examples and returns documents in the order of the rows. No randomness but from the
rows themselves, so that two runs ask the same.
"""
