"""Loaders by file format; each is one file that defines ``LOADER``."""
