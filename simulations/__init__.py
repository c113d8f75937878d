"""One package a paper: the experiment's arms, the command that runs them, and what came out."""
