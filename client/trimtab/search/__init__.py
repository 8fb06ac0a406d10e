"""Hybrid search: several outputs of an encoder, each searched by itself, and their hits fused."""
