"""What a client can see of a model before it trains it: one check a file."""
