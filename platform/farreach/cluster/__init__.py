"""Running on clusters: submitting jobs, files for launchers, trying things out on one machine."""
