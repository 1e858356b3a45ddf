"""Faults injected many times over: `python -m benchmarks.reliability`."""
