"""What this package uses of other libraries, and what became of it in another version of them."""
