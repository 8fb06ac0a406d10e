"""What an encoder can give, each kind in its own file."""
