"""Trackers: services and files outside the run's own records that follow it. See ``base`` for the interface."""
