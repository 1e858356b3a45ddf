"""Augmentations of whole batches on their own device: `draw_x` is random, `x` is a function of what was drawn."""
