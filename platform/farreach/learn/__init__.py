"""Data-parallel learners: one loop, in one process or in several under Ray Train."""
