"""Encoders and their versions: loaded, warmed, on trial, swapped, unloaded."""
