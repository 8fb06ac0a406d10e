"""A server of several processes: front ends, one engine, and a supervisor that starts and watches them."""
