"""A run outside the simulator: keys and start scripts for real Flower processes, and a federation on loopback."""
