"""Conformance suites that users can run on what they add."""
