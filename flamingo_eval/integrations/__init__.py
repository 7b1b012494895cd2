"""What ties a run to programs that it does not come from; each needs an extra of its own."""
