"""Tables of results: grids of trainings and evaluations as data, run on a cluster, and set beside published numbers."""
