"""What the wire carries besides texts, and what a graph takes and gives: arrays, columns, messages."""
