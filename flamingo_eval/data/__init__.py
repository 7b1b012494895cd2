"""Benchmarks' data on the disk."""
