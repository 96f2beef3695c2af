"""Training: the loop, its step, chance, and what it says of itself."""
