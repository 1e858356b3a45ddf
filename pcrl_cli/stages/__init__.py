"""The deeds: typed functions that join the parts and return result models. The Python API."""
