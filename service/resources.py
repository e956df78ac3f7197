"""The routes: read, call, assign. Knows HTTP, no arithmetic and no model."""

from __future__ import annotations

from dataclasses import dataclass

from falcon import HTTP_503, HTTPBadRequest, Request, Response

from service import encoding, schema
from service.errors import BodyTooLarge, UnsupportedMedia
from service.registry import Registry, State

JSON_TYPES = ("application/json", "text/json")
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

    on_head = on_get  # what some load balancers ask with

    def on_get_ready(self, req: Request, resp: Response) -> None:
        """Answer 200 once at least one model serves."""
        is_ready = bool(self.registry.loaded())
        resp.media = HEALTH_BODIES[State.READY if is_ready else State.LOADING]
        if not is_ready:
            resp.status = HTTP_503

    on_head_ready = on_get_ready

    def on_get_live(self, req: Request, resp: Response) -> None:
        """Answer 200 as long as the process answers at all."""
        resp.media = HEALTH_BODIES[State.READY]

    on_head_live = on_get_live


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
    """Read a JSON body. Raises UnsupportedMedia, BodyTooLarge, or HTTPBadRequest for a broken one."""
    content_type = (req.content_type or JSON_TYPES[0]).partition(";")[0].strip().lower()
    if content_type not in JSON_TYPES and not content_type.endswith("+json"):
        raise UnsupportedMedia(content_type)
    length = req.content_length
    if length and length > max_bytes:
        raise BodyTooLarge(max_bytes)
    try:
        body: bytes = req.stream.read(max_bytes + 1)
    except Exception as error:  # noqa: BLE001  the server's own classes for broken HTTP, of no common kind
        raise HTTPBadRequest(description=f"The request body cannot be read: {error}") from error
    if len(body) > max_bytes:
        raise BodyTooLarge(max_bytes)
    return body
