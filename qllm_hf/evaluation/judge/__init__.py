"""Answers rated by another language model: judges over HTTP or in memory, and MT-Bench, which asks them."""
