"""How good a ranking is: measures, the formats of benchmarks, and published numbers."""
