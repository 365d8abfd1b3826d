"""Training CLIP4STR: the permuted objective, the recipe and the loop."""
