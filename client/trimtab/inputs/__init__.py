"""Kinds of inputs, each in its own file: what a manifest may declare, and what a graph is fed."""
