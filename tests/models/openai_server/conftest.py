"""Fixtures of these tests."""

from tests.support.server_runs import data, run, server, short_pauses  # noqa: F401
