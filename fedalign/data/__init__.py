"""Where judgments come from: sources, cleaning, partitions over clients, encoders and the shards they make."""
