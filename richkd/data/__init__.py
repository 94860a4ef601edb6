"""Data sets: readers, splits, views, image sets for the device, corruptions."""
