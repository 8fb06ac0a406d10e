"""Passes that make variants of an encoder: over its torch weights, and over its graph."""
