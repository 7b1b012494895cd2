"""Numbers from scores: statistics, comparison, gate, controls, published, reproduce, bench. No rendering."""
