"""What computes: a queue, the devices that it feeds, and what runs on them."""
