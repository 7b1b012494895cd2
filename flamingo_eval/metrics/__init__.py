"""Metrics; one file each, with the name ``METRIC`` in it."""
