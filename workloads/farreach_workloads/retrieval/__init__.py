"""Search by meaning: encoders of text, how they are trained, and what they find."""
