"""The ground of all other rooms: files, errors, downloads, resumed work, devices, processes."""
