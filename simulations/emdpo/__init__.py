"""Experiments on EM-DPO: toy tables, what identifies types, and real annotators."""
