"""The images of a request: what a caller sent to pixels of a model's size. Knows no model and no graph."""

from __future__ import annotations

import base64
import binascii
import re
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from service import fetching, images
from service.addresses import FetchRules
from service.errors import ImageError, InvalidRequest
from service.manifest import Manifest
from service.options import EmbedOptions
from service.vision import Vision

MAX_IMAGES = 128  # of one request; each is 1.8 MB at most when it has the model's size
FETCHES_OF_REQUEST, FETCHES_AT_ONCE = 8, 32  # of one request, of all; each may hold a whole file
URL_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*:/", re.IGNORECASE)
DATA_URI = re.compile(r"data:(?P<kind>[^,]*),", re.IGNORECASE)
IMAGE_DATA_URI = re.compile(r"data:image/[^,]{1,100},", re.IGNORECASE)  # what a plain string must begin with
BASE64_GROUP, BYTES_OF_GROUP = 4, 3

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class ImageSource:
    """What stands for an image: an http(s) URL, a data URI or base64; `param` is its place in the body."""

    reference: str
    param: str
    is_plain: bool = False  # a string among the inputs, which to some models is a text


Input = str | ImageSource  # of a request
Item = str | Pixels  # of a model


@dataclass(frozen=True)
class ImageReader:
    """Fetches and decodes the images of requests."""

    rules: FetchRules
    max_pixels: int  # of an image before it is resized
    # One at a time, and always in the same thread: each thread has a heap of its own, which would keep what
    # the decoding of a large image took.
    _decoder: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "image-decoder"))
    _fetching: threading.BoundedSemaphore = field(
        default_factory=lambda: threading.BoundedSemaphore(FETCHES_AT_ONCE)
    )

    def read(self, inputs: Sequence[Input], manifest: Manifest, options: EmbedOptions) -> list[Item]:
        """Put pixels (height, width, 3) in the place of images; order and texts stay.

        Raises InvalidRequest that names the first image that cannot be had, or that the model does not take.
        """
        if manifest.vision is None:
            return [_as_text(item, manifest.name) for item in inputs]
        places = {index: source for index, source in enumerate(inputs) if isinstance(source, ImageSource)}
        if places and options.late_chunking:
            param = next(iter(places.values())).param
            raise InvalidRequest(
                f"'{param}' is an image: late_chunking takes texts only.",
                param=param,
                code="unsupported_option",
            )
        if len(places) > MAX_IMAGES:
            raise InvalidRequest(
                f"'input' has {len(places)} images, more than {MAX_IMAGES}; send several requests.",
                param="input",
                code="too_many_images",
            )
        pixels = self._read_all(places, manifest.vision)
        return [pixels[index] if index in pixels else str(item) for index, item in enumerate(inputs)]

    def _read_all(self, sources: Mapping[int, ImageSource], vision: Vision) -> dict[int, Pixels]:
        """Read images, those behind URLs at the same time; the first of the request that fails is raised."""
        urls = {index: source for index, source in sources.items() if _is_url(source.reference)}
        with ThreadPoolExecutor(min(FETCHES_OF_REQUEST, max(1, len(urls)))) as pool:
            fetches = {index: pool.submit(self._fetch, source, vision) for index, source in urls.items()}
            try:
                return {
                    index: fetches[index].result() if index in fetches else self._read(source, vision)
                    for index, source in sources.items()
                }
            finally:
                for fetch in fetches.values():
                    fetch.cancel()  # after one has failed

    def _fetch(self, source: ImageSource, vision: Vision) -> Pixels:
        with self._fetching:  # until the file is decoded: it stays in memory
            return self._read(source, vision)

    def _read(self, source: ImageSource, vision: Vision) -> Pixels:
        try:
            content = self._content(source.reference)
            return self._decoder.submit(_decoded, content, self.max_pixels, vision).result()
        except ImageError as error:
            raise InvalidRequest(
                f"{source.param}: {error.message}.", param=source.param, code=error.code
            ) from error

    def _content(self, reference: str) -> bytes:
        """Return the bytes of the file. Raises ImageError."""
        stripped = reference.strip()
        given = DATA_URI.match(stripped)
        if given:
            if not given["kind"].lower().endswith(";base64"):
                raise ImageError("a data URI must carry base64: data:image/png;base64,...")
            return self._from_base64(stripped[given.end() :])
        if _is_url(stripped):
            return fetching.fetch(stripped, self.rules)
        return self._from_base64(stripped)

    def _from_base64(self, encoded: str) -> bytes:
        limit = self.rules.max_bytes
        if len(encoded) > (limit // BYTES_OF_GROUP + 1) * BASE64_GROUP * 2:  # twice: room for line ends
            raise _too_many_bytes(limit)
        try:
            joined = "".join(encoded.split())
            content = base64.b64decode(joined + "=" * (-len(joined) % BASE64_GROUP), validate=True)
        except (binascii.Error, ValueError) as error:
            raise ImageError("is neither an http(s) URL nor a data URI nor base64") from error
        if len(content) > limit:
            raise _too_many_bytes(limit)
        return content


def _decoded(content: bytes, max_pixels: int, vision: Vision) -> Pixels:
    return images.resized(images.decode(content, max_pixels), vision)


def _as_text(item: Input, model: str) -> str:
    """Take an input of a model that takes texts only."""
    if isinstance(item, str):
        return item
    if item.is_plain:
        return item.reference
    raise InvalidRequest(
        f"'{item.param}' is an image: model {model} takes texts only, jina-embeddings-v4 takes both.",
        param=item.param,
        code="images_unsupported",
    )


def _is_url(reference: str) -> bool:
    """Tell a URL from a data URI and base64."""
    stripped = reference.lstrip()
    return URL_SCHEME.match(stripped) is not None and not DATA_URI.match(stripped)


def found_in(text: str, param: str) -> Input:
    """Take a string for an image where it is a data URI of one."""
    return ImageSource(text, param, is_plain=True) if IMAGE_DATA_URI.match(text) else text


def _too_many_bytes(limit: int) -> ImageError:
    return ImageError(f"has more than {limit} bytes (IMAGE_MAX_BYTES)", code="image_too_large")
