"""Who is let in: tokens in flight, the time that is left, the memory that clients hold."""
