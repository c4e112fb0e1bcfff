"""Training a network: the loop, what it starts from, its state, its validation and its loss."""
