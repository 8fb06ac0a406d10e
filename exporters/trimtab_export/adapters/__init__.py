"""Adapters: fitted on a ladder from nothing to inner states, chosen and judged by held-out retrieval."""
