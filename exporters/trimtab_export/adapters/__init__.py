"""Adapters: a ladder of maps from the identity to inner states, chosen and judged by held-out retrieval."""
