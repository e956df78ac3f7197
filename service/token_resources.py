"""The routes of tokens, and of one model by its name. Knows HTTP, no arithmetic and no model."""

from __future__ import annotations

from dataclasses import dataclass

from falcon import Request, Response

from service import estimates, multi_vector, requests, schema, token_counts
from service.door import Door
from service.media import ImageReader
from service.registry import Registry


@dataclass(frozen=True)
class Tokenize:
    """POST /v1/tokenize."""

    registry: Registry
    door: Door
    max_inputs: int

    def on_post(self, req: Request, resp: Response) -> None:
        """Count the tokens of texts."""
        with self.door.enter(req) as (ticket, body):
            asked = requests.parse_tokenize(body, self.max_inputs)
            model = self.registry.get(asked.model)
            req.context.fields = {"model": model.manifest.name, "inputs": len(asked.texts)}
            self.door.admit(ticket, sum(map(estimates.num_tokens, asked.texts)))
            counted = token_counts.count(model, asked.texts, asked.task)
            req.context.fields["tokens"] = counted.num_tokens
            name = model.manifest.name
            resp.media = schema.tokenize_response(name, counted, return_ids=asked.return_ids)


@dataclass(frozen=True)
class MultiVector:
    """POST /v1/multi-vector."""

    registry: Registry
    images: ImageReader
    door: Door
    max_inputs: int

    def on_post(self, req: Request, resp: Response) -> None:
        """Embed every token of the inputs."""
        with self.door.enter(req) as (ticket, body):
            asked = requests.parse_multi_vector(body, self.max_inputs)
            model = self.registry.embedding(asked.model)
            name = model.manifest.name
            req.context.fields = {"model": name, "inputs": len(asked.inputs)}
            options = multi_vector.asked_of(model.manifest, asked.side, truncate=asked.truncate)
            multi_vector.check(model, options, asked.dimensions)  # before anything is fetched
            self.door.admit(ticket, model.estimate(asked.inputs, options), is_held=True)
            items = self.images.read(asked.inputs, model.manifest, options)
            found = multi_vector.embed(model.shared(ticket), items, options)
            req.context.fields["tokens"] = found.num_tokens
            resp.media = schema.multi_vector_response(name, asked.embedding_type, found)


@dataclass(frozen=True)
class OneModel:
    """GET /v1/models/{id}."""

    registry: Registry

    def on_get(self, req: Request, resp: Response, name: str) -> None:
        """Describe a model that serves."""
        manifest = self.registry.get(name).manifest
        (loaded,) = (one for one in self.registry.loaded() if one.model.manifest.name == manifest.name)
        resp.media = schema.model_response(manifest, loaded.choice)
