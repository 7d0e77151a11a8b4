"""Recorded episodes: making them, reading the layouts of others, and finding what is wrong."""
