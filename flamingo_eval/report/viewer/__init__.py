"""Runs in a browser: tables, curves, every answer with the images that led to it; live, or as files."""
