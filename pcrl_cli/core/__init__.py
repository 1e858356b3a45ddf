"""What everybody may know; it knows nobody."""
