"""The demo: a generated world of small pictures, a tiny Flamingo trained on it, and the recipe that trained it."""
