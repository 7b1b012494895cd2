"""A hub on this machine: as much of it as downloads need."""

from __future__ import annotations

import json
from http.server import BaseHTTPRequestHandler
from pathlib import Path


class Hub(BaseHTTPRequestHandler):
    """As much of a hub as a download needs: files of a folder, and repositories that are gated or not there."""

    folder: Path
    asked: list[str]
    broken: int
    """How many requests are still to fail: out of order, or cut off in the middle of the content."""

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        type(self).asked.append(f"{self.command} {self.path}")
        owner, repo, *rest = self.path.partition("?")[0].strip("/").split("/")
        if owner == "api":  # /api/models/OWNER/NAME/revision/COMMIT, and .../tree/COMMIT
            self._list(rest[1], tree="tree" in rest)
            return
        file = self.folder / repo / "/".join(rest[2:])
        if repo == "gated" or not file.is_file():
            self.send_response(403 if repo == "gated" else 404)
            missing = "EntryNotFound" if (self.folder / repo).is_dir() else "RepoNotFound"
            self.send_header("X-Error-Code", "GatedRepo" if repo == "gated" else missing)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        content = file.read_bytes()
        if type(self).broken and not body:
            type(self).broken -= 1
            self.send_response(503)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(200)
        for key, value in (("X-Repo-Commit", "a" * 40), ("ETag", f'"{owner}-{len(content)}"'),
                           ("Content-Length", str(len(content)))):  # fmt: skip
            self.send_header(key, value)
        self.end_headers()
        if body and type(self).broken:
            type(self).broken -= 1
            self.wfile.write(content[:300])
            self.close_connection = True
        elif body:
            self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""

    def _list(self, repo: str, *, tree: bool) -> None:
        """What the hub says of a repository: its files and their sizes."""
        files = [path for path in sorted((self.folder / repo).rglob("*")) if path.is_file()]
        siblings = [
            {"rfilename": str(path.relative_to(self.folder / repo)), "size": path.stat().st_size} for path in files
        ]
        listed = [{"type": "file", "path": one["rfilename"], "size": one["size"], "oid": "b" * 40} for one in siblings]
        about = {"id": f"owner/{repo}", "sha": "a" * 40, "siblings": siblings}
        content = json.dumps(listed if tree else about).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
