"""What Trimtab does on an NVIDIA GPU, in one run: see `python -m bench.gpu --help`."""
