"""What knows nothing of distillation: files, errors, downloads, resumed work, devices, processes."""
