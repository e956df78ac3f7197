"""Composition: every object is made here and handed to those that use it. Also the table of statuses."""

from __future__ import annotations

import importlib.metadata
import logging
import platform
from functools import partial
from pathlib import Path
from threading import Thread
from typing import IO, Any

import falcon
import orjson
from falcon import App, CORSMiddleware, HTTPError, HTTPMethodNotAllowed, HTTPRouteNotFound, Request, Response

from service import addresses, lanes, logs, providers, schema, unquoted
from service.access import CallerCheck, RateCheck
from service.addresses import FetchRules
from service.admission import Admission, Limits
from service.config import EVERY_ORIGIN, Settings
from service.door import Door
from service.errors import (
    BodyTooLarge,
    ClientGone,
    InvalidRequest,
    LateChunkingUnsupported,
    ModelNotFound,
    ModelOutputInvalid,
    ModelUnavailable,
    Overloaded,
    RateLimited,
    RequestError,
    Unauthorized,
    UnsupportedMedia,
    WaitedTooLong,
)
from service.finishing import EXPOSED, Finish
from service.keys import Keys
from service.media import ImageReader
from service.metrics import Metrics
from service.middleware import RequestLog
from service.observing import Observer
from service.pages import Page, StaticFiles
from service.placement import Placement
from service.rates import Rates
from service.registry import Registry
from service.resources import RETRY_SECONDS, Embeddings, Figures, Health, Models, Rerank, Root
from service.scheduler import Scheduler
from service.surface import Surface
from service.token_resources import MultiVector, OneModel, Tokenize

STATUSES: dict[type[RequestError], int] = {
    Unauthorized: 401,
    InvalidRequest: 422,
    LateChunkingUnsupported: 422,
    ModelNotFound: 404,
    BodyTooLarge: 413,
    UnsupportedMedia: 415,
    ModelUnavailable: 503,
    ModelOutputInvalid: 500,
    Overloaded: 429,
    RateLimited: 429,
    WaitedTooLong: 504,
    ClientGone: 499,  # what proxies log; nobody reads it
}
RateTable = IO[bytes] | None
BODIES_AT_ONCE = 8  # bodies of the largest size that a worker holds at once
FALCON_CODES = {400: "bad_request", 404: "route_not_found", 405: "method_not_allowed", 413: "body_too_large"}
ERROR_TYPES = {401: "authentication_error", 429: "rate_limit_error"}


def create_app(
    settings: Settings, placement: Placement, rate_table: RateTable = None, metrics_folder: Path | None = None
) -> tuple[App, Thread]:  # type: ignore[type-arg]
    """Make the application and the thread that loads its models. Raises ConfigError when there are none.

    Workers with the same table of rates share their limit; with the same folder they answer for each other in
    /metrics.
    """
    metrics = make_metrics(metrics_folder)
    num_lanes = lanes.count(settings.intra_op_threads)
    scheduler = Scheduler(settings.max_batch_tokens, num_lanes, settings.max_queue_tokens, metrics)
    registry = Registry(settings, scheduler, placement, metrics)
    return make_app(settings, registry, rate_table, metrics), registry.start_loading()


def make_metrics(folder: Path | None = None) -> Metrics:
    """Begin to count, in a folder for several processes."""
    build = {
        "version": _version(),
        "python": platform.python_version(),
        "onnxruntime": providers.RUNTIME_VERSION,
    }
    return Metrics(build, folder)


def make_app(
    settings: Settings, registry: Registry, rate_table: RateTable = None, metrics: Metrics | None = None
) -> App:  # type: ignore[type-arg]
    """Wire the routes to a registry, loaded or not.

    Without a table, rates are of this process alone; without metrics they are begun here.
    """
    metrics = metrics or make_metrics()
    app = App(middleware=[RequestLog(metrics), *_access(settings, rate_table)])
    app.req_options.strip_url_path_trailing_slash = True
    json_handler = falcon.media.JSONHandler(dumps=_dumps, loads=orjson.loads)
    app.resp_options.media_handlers[falcon.MEDIA_JSON] = json_handler
    door = Door(_admission(settings, metrics), settings.max_body_bytes)
    health = Health(registry, door.admission)
    surface = Surface(app, _version(), registry)
    app.add_route("/", Root(registry, _version(), surface, Page("home.html").on_get))
    app.add_route("/openapi.json", surface)
    app.add_route("/docs", Page("docs.html"))
    app.add_route("/playground", Page("playground.html"))
    app.add_route("/static/{name}", StaticFiles())
    embeddings = Embeddings(registry, _image_reader(settings), door, settings.max_inputs)
    app.add_route("/v1/embeddings", embeddings)
    app.add_route("/v1/multi-vector", MultiVector(registry, embeddings.images, door, settings.max_inputs))
    app.add_route("/v1/tokenize", Tokenize(registry, door, settings.max_inputs))
    app.add_route("/v1/rerank", Rerank(registry, door, settings.max_inputs))
    app.add_route("/v1/models", Models(registry))
    app.add_route("/v1/models/{name:path}", OneModel(registry))
    app.add_route("/healthz", health)
    app.add_route("/readyz", health, suffix="ready")
    app.add_route("/livez", health, suffix="live")
    app.add_route("/metrics", Figures(metrics.render))
    app.add_error_handler(RequestError, _answer_request_error)
    app.add_error_handler(Exception, _answer_unexpected)
    app.set_error_serializer(partial(_answer_falcon_error, surface))
    return app


def _access(settings: Settings, rate_table: RateTable) -> list[Any]:
    """Make what stands around the routes; what comes later is nearer to them."""
    origins = settings.cors_origins
    has_every = origins == (EVERY_ORIGIN,)
    found: list[Any] = []
    if origins:
        found.append(CORSMiddleware(EVERY_ORIGIN if has_every else origins, expose_headers=EXPOSED))
    if settings.api_keys:
        found.append(CallerCheck(Keys(settings.api_keys)))
    if settings.rate_limit:
        found.append(RateCheck(Rates(settings.rate_limit, rate_table), settings.rate_limit))
    return [*found, Finish(settings.compression, varies_by_origin=bool(origins) and not has_every)]


def _admission(settings: Settings, observer: Observer) -> Admission:
    limits = Limits(
        max_tokens=settings.max_queue_tokens,
        max_requests=settings.threads,
        max_body_bytes=settings.max_body_bytes * BODIES_AT_ONCE,
        wait_seconds=settings.request_timeout,
    )
    return Admission(limits, observer)


def _image_reader(settings: Settings) -> ImageReader:
    names, networks = addresses.parse_allowed(settings.image_allow_hosts)
    rules = FetchRules(allowed_names=names, allowed_networks=networks, max_bytes=settings.image_max_bytes)
    return ImageReader(rules, settings.image_max_pixels)


def _version() -> str:
    try:
        return importlib.metadata.version("jina-onnx-server")
    except importlib.metadata.PackageNotFoundError:
        return "not installed"  # run from a source folder


def _dumps(media: Any) -> bytes:
    return orjson.dumps(media, option=orjson.OPT_SERIALIZE_NUMPY)


def _error_type(status: int) -> str:
    if status >= 500:
        return "internal_error"
    return ERROR_TYPES.get(status, "invalid_request_error")


def _answer_request_error(req: Request, resp: Response, error: RequestError, params: dict[str, Any]) -> None:
    status = STATUSES[type(error)]
    resp.status = falcon.code_to_http_status(status)
    resp.media = schema.error_response(error.message, _error_type(status), error.param, error.code)
    if isinstance(error, LateChunkingUnsupported):
        resp.media = schema.late_chunking_refusal(resp.media)
    if isinstance(error, ModelUnavailable) and error.code == "model_loading":
        resp.set_header("Retry-After", RETRY_SECONDS)
    if isinstance(error, Overloaded | RateLimited):
        resp.set_header("Retry-After", str(error.retry_seconds))
    req.context.fields["code"] = error.code


def _answer_unexpected(req: Request, resp: Response, error: Exception, params: dict[str, Any]) -> None:
    """Answer 500 for what nobody foresaw; for Falcon's own errors it has handlers of its own."""
    request_id = req.context.request_id
    logging.getLogger(logs.LOGGER_NAME).error(
        "unexpected error",
        extra={logs.FIELDS: {"request_id": request_id, "error": unquoted.places(error)}},
    )
    resp.status = falcon.HTTP_500
    message = f"The server failed unexpectedly. Its log has the reason under request id {request_id}."
    resp.media = schema.error_response(message, _error_type(500), None, "internal_error")


def _answer_falcon_error(surface: Surface, req: Request, resp: Response, error: HTTPError) -> None:
    status = error.status_code
    code = FALCON_CODES.get(status, "http_error")
    hint = surface.did_you_mean(req.method, req.path) if isinstance(error, HTTPRouteNotFound) else ""
    if isinstance(error, HTTPMethodNotAllowed):
        hint = f" It takes {dict(error.headers or {})['Allow']}."
    message = (
        error.description
        or f"{error.status}: {req.method} {req.path} is not something this service does.{hint}"
    )
    resp.content_type = falcon.MEDIA_JSON
    resp.data = _dumps(schema.error_response(message, _error_type(status), None, code))
