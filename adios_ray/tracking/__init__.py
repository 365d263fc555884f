"""What a run leaves for people to see: files, terminal, report, metrics."""
