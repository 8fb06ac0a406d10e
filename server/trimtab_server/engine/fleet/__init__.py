"""The devices, their workers, and what becomes of a batch that fails."""
