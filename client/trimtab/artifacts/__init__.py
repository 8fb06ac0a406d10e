"""What lies on disk and is read as a stranger's: bundles, adapters, their files and signatures."""
