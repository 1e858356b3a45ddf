"""From the numbers of runs to figures, tables and one HTML page."""
