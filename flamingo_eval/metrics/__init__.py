"""Metrics; each is one file that defines ``METRIC``."""
