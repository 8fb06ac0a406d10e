"""The two clients: how they connect, and how they drive what trimtab.core decides."""
