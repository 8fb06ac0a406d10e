"""What is served: bundles found, loaded, unloaded, retried."""
