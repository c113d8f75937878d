"""Where judgments come from, how they are laid out over clients, and how they are encoded."""
