"""What a run or a cluster is doing now, for people: `farreach status`."""
