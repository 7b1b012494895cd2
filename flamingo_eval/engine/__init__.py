"""The four stages: plan, answer, score, and the run that strings them together."""
