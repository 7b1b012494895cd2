"""Numbers from scores: statistics, comparison, gate, controls. No rendering."""
