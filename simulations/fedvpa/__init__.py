"""The experiment on FedVPA-GP: a federated variational preference model against honest baselines."""
