"""Text encoders, one file a kind."""
