"""The systems that farreach trains: one package per kind of workload."""
