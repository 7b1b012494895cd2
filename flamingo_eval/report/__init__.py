"""Report: scores as tables."""
