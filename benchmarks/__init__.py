"""What the docs' numbers come from: `python -m benchmarks` prints the ratios, other modules measure one thing each."""
