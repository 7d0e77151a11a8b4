"""Actor machinery: everything about processes that are not the driver."""
