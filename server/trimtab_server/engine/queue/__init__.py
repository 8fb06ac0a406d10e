"""What waits for a device: whose turn it is, what runs together, what is computed once. Sans-IO."""
