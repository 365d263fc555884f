"""A run: its configuration, its checks, the population's training, and the verdict at the end."""
