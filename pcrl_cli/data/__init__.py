"""Volumes to HDF5 shards to batches on the device; knows no learning."""
