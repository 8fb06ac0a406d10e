"""From one space into another: adapters, routes through them, and whether live queries are like theirs."""
