"""Executors: who answers a run's requests; one file each, with the name ``EXECUTOR`` in it."""
