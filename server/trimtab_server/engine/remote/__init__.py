"""The engine's port between processes: front ends on one side, the engine on the other."""
