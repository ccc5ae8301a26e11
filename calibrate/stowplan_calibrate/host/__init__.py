"""What the host reaches without a GPU: memory, cores and disks, measured by a small C library built on the spot."""
