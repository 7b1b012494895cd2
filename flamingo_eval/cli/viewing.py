"""Runs in a browser: ``view``."""

from __future__ import annotations

import os
import socket
import webbrowser
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from flamingo_eval.cli import options as opt
from flamingo_eval.cli.output import emit
from flamingo_eval.cli.reading import check_all_answered
from flamingo_eval.core.errors import UserError
from flamingo_eval.core.progress import note, warn
from flamingo_eval.demo.root import data_folder

PORT = 8917
"""The page's port, unless it is in use."""

_LOOPBACK = "127.0.0.1"
_LOOPBACKS = (_LOOPBACK, "localhost", "::1")


def register(app: typer.Typer) -> None:
    """Adds this module's command."""
    app.command(rich_help_panel=opt.PANEL)(view)


def view(
    context: typer.Context,
    runs: Annotated[
        list[Path], typer.Argument(parser=opt.path, metavar="RUN [RUN]", help="A run folder, or two to compare.")
    ],
    bundle: Annotated[
        Path | None,
        typer.Option("--bundle", parser=opt.path, metavar="DIR", help="Write the page as files that open from the "
                     "disk (index.html), for a CI artefact or somebody else."),
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, metavar="N", help="With --bundle: of each trial only N answers.")
    ] = None,
    text: Annotated[
        str | None, typer.Option("--filter", metavar="TEXT", help="With --bundle: only answers that have this in id, "
                                 "question or answer.")
    ] = None,
    port: Annotated[
        int | None, typer.Option("--port", min=0, max=65535, help=f"Default: {PORT}, or a free one.")
    ] = None,
    host: Annotated[
        str, typer.Option("--host", help="Address to listen on. On the loopback all users of this machine "
                                 "can read the run and mark answers, elsewhere all who can reach it.")
    ] = _LOOPBACK,
    browser: Annotated[
        bool, typer.Option("--browser/--no-browser", help="Open the page in the browser.")
    ] = True,
    data_root: opt.MovedData = None,
) -> None:  # fmt: skip
    """Look at a run in the browser: every answer with the demonstrations that led to it. Two runs are compared.

    While a run is answering, new answers appear by themselves. Ctrl-C ends it.
    """
    if bundle is not None:
        opt.refuse(context, ("port", "host", "browser"), "has no effect with --bundle, which serves nothing")
        from flamingo_eval.report.viewer.bundle import write_bundle

        count = write_bundle(bundle, runs, data_folder, data_root, limit=limit, text=text)
        emit(f"{count} answers in {bundle / 'index.html'}")
        check_all_answered(runs)
        return
    if limit is not None or text is not None:
        raise UserError("--limit and --filter go with --bundle; the page itself filters")
    _serve(runs, data_root, host, port, browser=browser)


def _serve(runs: Sequence[Path], data_root: str | None, host: str, port: int | None, *, browser: bool) -> None:
    """Serves the page until Ctrl-C, which is the normal way to end it."""
    import uvicorn

    from flamingo_eval.report.viewer.images import ShownImages
    from flamingo_eval.report.viewer.server import application, listen
    from flamingo_eval.report.viewer.views import Views

    try:
        note("reading the answers, and the data that they belong to")
        views = Views(runs, data_folder, data_root, ShownImages())
        with listen(host, port, PORT) as own:
            config = uvicorn.Config(application(views, host), log_level="critical", access_log=False, lifespan="off",
                                    ws="none", server_header=False, timeout_graceful_shutdown=1)  # fmt: skip
            _announce(host, own.getsockname()[1], browser=browser)
            uvicorn.Server(config).run(sockets=[own])
    except KeyboardInterrupt:
        note("ended")


def _announce(host: str, port: int, *, browser: bool) -> None:
    """Prints where the page is, and opens it."""
    shown = f"[{host}]" if ":" in host else host
    address = f"http://{shown}:{port}/"
    through_ssh = "SSH_CONNECTION" in os.environ
    if host not in _LOOPBACKS:
        warn("whoever can reach this machine can read these runs, and mark answers")
    if through_ssh:
        to = _LOOPBACK if host in ("0.0.0.0", "::", "localhost") else shown
        tunnel = f"ssh -L {port}:{to}:{port} {socket.gethostname()}"
        note(f"through SSH: on your own machine `{tunnel}`, then http://localhost:{port}/")
    emit(f"{address}  (Ctrl-C ends it)")  # last: whoever waits for this line gets all others first
    if browser and not through_ssh:
        webbrowser.open(address)
