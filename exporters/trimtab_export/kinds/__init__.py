"""Kinds of inputs and outputs as the exporter makes them, each in its own file."""
