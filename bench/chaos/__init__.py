"""Faults, rollovers, long runs and fuzzing, against real server processes on the loopback."""
