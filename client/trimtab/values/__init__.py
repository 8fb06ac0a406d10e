"""What goes over the wire beside the texts, as arrays and as messages."""
