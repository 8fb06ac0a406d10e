"""Kinds of outputs, each in its own file: what a manifest may declare, and the output's columns."""
