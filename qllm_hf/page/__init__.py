"""One HTML file with everything that was measured."""
