"""Who is let in: tokens in flight, quotas, and the time that is left."""
