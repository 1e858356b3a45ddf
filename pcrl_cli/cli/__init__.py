"""Typer words only: options in, one stage call, one printed result."""
