"""Goal reaching without rewards: Walk the Random Walk (2206.11733)."""
