"""The report of a run: one self-contained HTML file, readable while the run continues."""
