"""Networks; no training."""
