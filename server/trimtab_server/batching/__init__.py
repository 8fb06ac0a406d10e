"""One queue, and which texts run together."""
