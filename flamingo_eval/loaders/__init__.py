"""Loaders by file format; one file each, with the name ``LOADER`` in it."""
