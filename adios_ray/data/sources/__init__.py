"""Where images come from: folders of files, or rendered on the spot."""
