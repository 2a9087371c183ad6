"""Products with weight matrices, and what belongs to them."""
