"""The routes: read, call, assign. Knows HTTP, no arithmetic and no model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from falcon import HTTP_503, MEDIA_JSON, Request, Response

from service import requests, schema, status
from service.admission import Admission
from service.door import Door
from service.media import ImageReader
from service.registry import Registry, State
from service.surface import Surface

RETRY_SECONDS = "5"
HTML = "text/html"


@dataclass(frozen=True)
class Embeddings:
    """POST /v1/embeddings."""

    registry: Registry
    images: ImageReader
    door: Door
    max_inputs: int

    def on_post(self, req: Request, resp: Response) -> None:
        """Embed the inputs."""
        with self.door.enter(req) as (ticket, body):
            asked = requests.parse_embeddings(body, self.max_inputs)
            model = self.registry.embedding(asked.model)
            req.context.fields = {"model": model.manifest.name, "inputs": len(asked.inputs)}
            model.check(asked.options)  # before anything is fetched
            self.door.admit(ticket, model.estimate(asked.inputs, asked.options), asked.options.is_per_token)
            items = self.images.read(asked.inputs, model.manifest, asked.options)
            computed = model.shared(ticket).embed(items, asked.options)
            req.context.fields["tokens"] = computed.num_tokens
            resp.media = schema.embeddings_response(model.manifest.name, asked.embedding_type, computed)


@dataclass(frozen=True)
class Rerank:
    """POST /v1/rerank."""

    registry: Registry
    door: Door
    max_inputs: int

    def on_post(self, req: Request, resp: Response) -> None:
        """Rank the documents."""
        with self.door.enter(req) as (ticket, body):
            asked = requests.parse_rerank(body, self.max_inputs)
            model = self.registry.reranker(asked.model)
            req.context.fields = {"model": model.manifest.name, "documents": len(asked.documents)}
            self.door.admit(ticket, model.estimate(asked.query, asked.documents, asked.options))
            ranking = model.shared(ticket).rank(asked.query, asked.documents, asked.options)
            req.context.fields["tokens"] = ranking.num_tokens
            resp.media = schema.rerank_response(model.manifest.name, asked, ranking)


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
    admission: Admission

    def on_get(self, req: Request, resp: Response) -> None:
        """Answer 200 when every model is ready; with `verbose`, say what runs where."""
        state = self.registry.state()
        failed = {"failed": self.registry.failed()} if state == State.FAILED else {}
        resp.media = {**HEALTH_BODIES[state], **failed}
        if req.get_param_as_bool("verbose", default=False):
            resp.media |= status.of_worker(self.registry.placement, self.registry.loaded())
            resp.media["queue"] = self.admission.status()
        if state != State.READY:
            resp.status = HTTP_503
        if state == State.LOADING:
            resp.set_header("Retry-After", RETRY_SECONDS)

    on_head = on_get  # what some load balancers ask with

    def on_get_ready(self, req: Request, resp: Response) -> None:
        """Answer 200 once at least one model serves."""
        is_ready = bool(self.registry.loaded())
        resp.media = HEALTH_BODIES[State.READY if is_ready else self.registry.state()]
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
class Figures:
    """GET /metrics."""

    render: Callable[[str], tuple[bytes, str]]  # from what is accepted to the text and its type

    def on_get(self, req: Request, resp: Response) -> None:
        """Say what all workers have counted."""
        resp.data, resp.content_type = self.render(req.get_header("Accept") or "")

    on_head = on_get


@dataclass(frozen=True)
class Root:
    """GET /."""

    registry: Registry
    version: str
    surface: Surface
    send_page: Callable[[Request, Response], None]

    def on_get(self, req: Request, resp: Response) -> None:
        """Say what this is and what it serves; to a browser with a page that leads on."""
        resp.append_header("Vary", "Accept")
        if _prefers_page(req):
            self.send_page(req, resp)
            return
        resp.media = {
            "name": "jina-onnx-server",
            "version": self.version,
            "models": [loaded.model.manifest.name for loaded in self.registry.loaded()],
            "routes": self.surface.routes,
        }


def _prefers_page(req: Request) -> bool:
    """Tell whether HTML is asked for by its name, and before JSON: who takes anything is no browser."""
    is_named = HTML in (req.get_header("Accept") or "").lower()
    return is_named and req.client_prefers((MEDIA_JSON, HTML)) == HTML
