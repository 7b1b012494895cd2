"""Selectors pick the demonstrations; each is one file that defines ``SELECTOR``."""
