"""Executors answer a run's requests; each is one file or package that defines ``EXECUTOR``."""
