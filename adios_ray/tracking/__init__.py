"""What a run records and shows: files, terminal, report, metrics, Weights & Biases."""
