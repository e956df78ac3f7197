"""What the application offers, said from its own routes and its loaded models. Knows HTTP."""

from __future__ import annotations

import re
from functools import cached_property
from typing import Any

from falcon import App, Request, Response, inspect

from service import openapi
from service.commands import did_you_mean
from service.registry import Registry

CONVERTER = re.compile(r":[^}]+\}")  # in `{name:path}`


class Surface:
    """GET /openapi.json, and the routes that / lists."""

    def __init__(self, app: App, version: str, registry: Registry) -> None:  # type: ignore[type-arg]
        """Describe an application, once all of its routes are there."""
        self._app = app
        self._version = version
        self._registry = registry
        self._made: tuple[list[str], dict[str, Any]] = ([], {})

    @cached_property
    def methods(self) -> list[tuple[str, str]]:
        """List the methods of all routes, as (method, path)."""
        return [
            (method.method, CONVERTER.sub("}", route.path))
            for route in inspect.inspect_routes(self._app)
            for method in route.methods
            if not method.internal
        ]

    @property
    def document(self) -> dict[str, Any]:
        """Return the OpenAPI document, made anew when another model is there."""
        manifests = [loaded.model.manifest for loaded in self._registry.loaded()]
        names = [manifest.name for manifest in manifests]
        made_for, made = self._made
        if not made or made_for != names:
            made = openapi.document(self._version, self.methods, manifests)
            self._made = (names, made)
        return made

    @cached_property
    def routes(self) -> list[str]:
        """List the routes in the document's order."""
        return [
            f"{method.upper()} {path}"
            for path, methods in self.document["paths"].items()
            for method in methods
            if method != "head"
        ]

    def did_you_mean(self, method: str, path: str) -> str:
        """Return the question whether a route that is nearly the same was meant, first of its method."""
        whole = [known for known in self.methods if "{" not in known[1]]
        own = [place for known, place in whole if known == method]
        return did_you_mean(path, own) or did_you_mean(path, [place for _, place in whole])

    def on_get(self, req: Request, resp: Response) -> None:
        """Answer with the document."""
        resp.media = self.document
