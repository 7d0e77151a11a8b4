"""What could go wrong on this machine, looked at before a run: `farreach doctor`."""
