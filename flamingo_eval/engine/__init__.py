"""Plan, answer and score, and the run that joins them."""
