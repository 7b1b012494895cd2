"""The demo: a generated world of small images, a tiny Flamingo trained on it, and the recipe that trained it."""
