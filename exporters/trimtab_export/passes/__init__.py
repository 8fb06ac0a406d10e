"""What makes a variant of an encoder: passes over its torch weights, and over its graph."""
