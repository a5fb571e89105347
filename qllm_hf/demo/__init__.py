"""The page on which visitors try schemes: what it may do, what it shows, and the server that carries it."""
