"""Kinds of inputs, each in its own file: what a manifest may say of one, and what a graph is fed of it."""
