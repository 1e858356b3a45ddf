"""Functions of arrays: boxes and crops, resizing, splits, losses, metrics."""
