"""Migration from one space to another: re-index, search both halves meanwhile, check stores' claims."""
