"""Runs and files at URIs: objects in a store, checkpoints among them, and who may write them."""
