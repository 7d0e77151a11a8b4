"""What frozen features and predictions are worth: computations on arrays."""
