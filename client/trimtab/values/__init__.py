"""What goes over the wire beside the texts, and what a graph takes and gives: arrays, columns, messages."""
