"""Tensors to pyramids of features."""
