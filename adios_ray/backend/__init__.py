"""Trials on a Ray cluster: their processes, where they run, and how the driver reaches them."""
