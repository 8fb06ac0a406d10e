"""How the exporter makes each kind of input and output, each in its own file."""
