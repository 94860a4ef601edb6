"""A trained classifier in use: loaded, exported to other formats, run on one's own images."""
