"""PluralLLM's experiment: federated, centralised and local training against honest baselines."""
