"""RichKD: distil an image classifier from a fused teacher (arXiv 2511.09286)."""
