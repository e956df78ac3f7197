"""The pages for people: files of this package, sent as they are. Knows HTTP, no model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from falcon import HTTPNotFound, Request, Response

FOLDER = Path(__file__).parent / "static"
MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".png": "image/png",
    ".txt": "text/plain; charset=utf-8",
}
# Nothing from elsewhere, nothing to elsewhere; the documentation page styles its elements one by one.
CONTENT_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
FILES_ARE_KEPT = "private, max-age=3600"
PAGES_ARE_KEPT = "no-cache"


@dataclass(frozen=True)
class Page:
    """GET of one page."""

    name: str

    def on_get(self, req: Request, resp: Response) -> None:
        """Send the page."""
        _send(resp, FOLDER / self.name, PAGES_ARE_KEPT)
        resp.set_header("Content-Security-Policy", CONTENT_POLICY)


class StaticFiles:
    """GET of what the pages are made of."""

    def __init__(self) -> None:
        """Know the files by name; no other path leads to one."""
        self._paths = {path.name: path for path in FOLDER.iterdir() if path.suffix in MEDIA_TYPES}

    def on_get(self, req: Request, resp: Response, name: str) -> None:
        """Send a file."""
        if name not in self._paths:
            raise HTTPNotFound(description=f"There is no file {name!r} here.")
        _send(resp, self._paths[name], FILES_ARE_KEPT)


def _send(resp: Response, path: Path, cache_control: str) -> None:
    resp.data = path.read_bytes()
    resp.content_type = MEDIA_TYPES[path.suffix]
    resp.set_header("Cache-Control", cache_control)
    resp.set_header("X-Content-Type-Options", "nosniff")
