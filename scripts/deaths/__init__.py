"""Kills commands at any moment, and sees what is left; `kill_anywhere.py` does so with all of them."""
