"""gRPC: our own API, KServe's, and health."""
