"""Schedulers of live trials, the population that they decide about, and search spaces."""
