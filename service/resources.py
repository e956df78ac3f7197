"""The routes: read, call, assign. Knows HTTP, no arithmetic and no model."""

from __future__ import annotations

import time
from dataclasses import dataclass

from falcon import HTTP_503, Request, Response

from service import encoding, schema
from service.errors import BodyTooLarge, UnsupportedMedia
from service.registry import Registry, State

JSON_TYPES = ("application/json", "text/json")
DISCARD_SECONDS = 5.0  # how long a body that is too large is read away, so that the client sees the answer
DISCARD_BLOCK = 1 << 16
RETRY_SECONDS = "5"


@dataclass(frozen=True)
class Embeddings:
    """POST /v1/embeddings."""

    registry: Registry
    max_body_bytes: int
    max_inputs: int

    def on_post(self, req: Request, resp: Response) -> None:
        """Embed the inputs."""
        asked = schema.parse_embeddings(read_body(req, self.max_body_bytes), self.max_inputs)
        model = self.registry.get(asked.model)
        req.context.fields = {"model": model.manifest.name, "inputs": len(asked.texts)}
        computed = model.embed(asked.texts, asked.options)
        req.context.fields["tokens"] = computed.num_tokens
        encoded = encoding.encode(computed.vectors, asked.embedding_type)
        resp.media = schema.embeddings_response(model.manifest.name, encoded, computed.num_tokens)


@dataclass(frozen=True)
class Models:
    """GET /v1/models."""

    registry: Registry

    def on_get(self, req: Request, resp: Response) -> None:
        """List the models that serve."""
        entries = [
            schema.model_response(loaded.model.manifest, loaded.choice) for loaded in self.registry.loaded()
        ]
        resp.media = {"object": "list", "data": entries}


@dataclass(frozen=True)
class Health:
    """GET /healthz, /readyz, /livez."""

    registry: Registry

    def on_get(self, req: Request, resp: Response) -> None:
        """Answer 200 when every model is ready."""
        state = self.registry.state()
        resp.media = HEALTH_BODIES[state]
        if state == State.FAILED:
            resp.media = {**HEALTH_BODIES[state], "failed": self.registry.failed()}
        if state != State.READY:
            resp.status = HTTP_503
            resp.set_header("Retry-After", RETRY_SECONDS)

    def on_get_ready(self, req: Request, resp: Response) -> None:
        """Answer 200 once at least one model serves."""
        is_ready = bool(self.registry.loaded())
        resp.media = HEALTH_BODIES[State.READY if is_ready else State.LOADING]
        if not is_ready:
            resp.status = HTTP_503

    def on_get_live(self, req: Request, resp: Response) -> None:
        """Answer 200 as long as the process answers at all."""
        resp.media = HEALTH_BODIES[State.READY]


HEALTH_BODIES = {
    State.READY: {"status": "ok"},
    State.LOADING: {"status": "loading"},
    State.FAILED: {"status": "error"},
}


@dataclass(frozen=True)
class Root:
    """GET /."""

    registry: Registry
    version: str

    def on_get(self, req: Request, resp: Response) -> None:
        """Say what this is and what it serves."""
        resp.media = {
            "name": "jina-onnx-server",
            "version": self.version,
            "models": [loaded.model.manifest.name for loaded in self.registry.loaded()],
            "routes": ["POST /v1/embeddings", "GET /v1/models", "GET /healthz", "GET /readyz", "GET /livez"],
        }


def read_body(req: Request, max_bytes: int) -> bytes:
    """Read a JSON body. Raises UnsupportedMedia, or BodyTooLarge once the rest was read away."""
    content_type = (req.content_type or JSON_TYPES[0]).partition(";")[0].strip().lower()
    if content_type not in JSON_TYPES and not content_type.endswith("+json"):
        raise UnsupportedMedia(content_type)
    length = req.content_length
    body: bytes = b"" if length and length > max_bytes else req.stream.read(max_bytes + 1)
    if len(body) > max_bytes or (length or 0) > max_bytes:
        deadline = time.monotonic() + DISCARD_SECONDS
        while time.monotonic() < deadline and req.stream.read(DISCARD_BLOCK):
            pass
        raise BodyTooLarge(max_bytes)
    return body
