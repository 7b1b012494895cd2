"""Servers of the tests' own, in a thread."""

from __future__ import annotations

import socketserver
import threading


def serve(server: socketserver.BaseServer) -> None:
    """Serves until ``shutdown``, which by default waits half a second for the thread to notice; here a hundredth."""
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
