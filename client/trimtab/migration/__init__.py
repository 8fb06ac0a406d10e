"""From one space into another: re-index, search both halves meanwhile, check what stores claim."""
