"""Kinds of outputs, each in its own file: what a manifest may say of one, and its columns."""
