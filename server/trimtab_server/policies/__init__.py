"""What an operator may configure of how an encoder answers, each in its own file."""
