"""Selectors: how demonstrations are picked; one file each, with the name ``SELECTOR`` in it."""
