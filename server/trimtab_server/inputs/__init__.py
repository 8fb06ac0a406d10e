"""What can be embedded, each kind in its own file."""
