"""The experiment of private alignment by reinforcement learning: what epsilon costs a small model on film reviews."""
