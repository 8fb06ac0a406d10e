"""Hybrid search: several outputs of an encoder, each searched by itself, and their hits fused."""

from trimtab.search.fusion import FusedHit, Part, by_ranks, by_scores

__all__ = ["FusedHit", "Part", "by_ranks", "by_scores"]
