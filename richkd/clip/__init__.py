"""CLIP: its zero-shot classifier, and its training."""
