"""The privacy experiment: what epsilon costs PluralLLM on real answers with many clients."""
