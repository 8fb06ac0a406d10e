"""Bundles and adapters on disk, with their files and signatures. All are read as untrusted."""
