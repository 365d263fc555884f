"""Populations of live trials and what they search."""
