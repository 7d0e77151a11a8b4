"""Image encoders and how they are trained."""
