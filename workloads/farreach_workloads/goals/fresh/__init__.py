"""go-fresh (arXiv:2301.02099): goal reaching from a fixed data set, in stages."""
