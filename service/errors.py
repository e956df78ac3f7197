"""The error tree. Knows what went wrong and what to tell the caller, nothing about HTTP statuses.

ProjectError
├── ConfigError            a setting is wrong: the start stops
├── BundleError            a bundle is missing, broken or too new
│   ├── UnknownTask        a setting names a task that the bundle does not have
│   └── NotOnDevice        a graph does not run on the device it was to run on
├── BakeError              a checkpoint cannot be baked
├── ImageError             an image cannot be fetched or read; becomes an InvalidRequest with its place
└── RequestError           one request cannot be answered; has param and code
    ├── Unauthorized       no API key, or a wrong one
    ├── InvalidRequest     the request itself is wrong
    │   └── LateChunkingUnsupported   has a body of its own in the specification
    ├── ModelNotFound      no such model is loaded
    ├── BodyTooLarge       the body exceeds MAX_BODY_BYTES
    ├── UnsupportedMedia   the content type is not JSON
    ├── ModelUnavailable   the model is still loading, or failed to load
    ├── Overloaded         too much waits already; has retry_seconds
    ├── RateLimited        the client has asked too often; has retry_seconds
    ├── WaitedTooLong      nothing of it was computed within REQUEST_TIMEOUT
    ├── ClientGone         nobody waits for the answer any more
    └── ModelOutputInvalid the graph answered with a value that is not finite, or not what it promises
"""

from __future__ import annotations


class ProjectError(Exception):
    """Anything this project raises on purpose."""


class ConfigError(ProjectError):
    """A setting is wrong; the message names the variable and the remedy."""


class BundleError(ProjectError):
    """A bundle cannot be opened; the message says why."""


class UnknownTask(BundleError):
    """A setting names a task that the bundle does not have; the message names both."""


class NotOnDevice(BundleError):
    """A graph does not run on the device it was to run on; the message names both."""


class BakeError(ProjectError):
    """A checkpoint cannot be turned into a bundle; the message says why."""


class ImageError(ProjectError):
    """An image cannot be fetched, decoded or used; the message says why, not which input it is."""

    def __init__(self, message: str, code: str = "invalid_image") -> None:
        super().__init__(message)
        self.message = message
        self.code = code


class RequestError(ProjectError):
    """A request cannot be answered."""

    def __init__(self, message: str, *, param: str | None = None, code: str) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code


class Unauthorized(RequestError):
    """The request shows no key, or none of the server's."""

    def __init__(self, reason: str, code: str) -> None:
        super().__init__(f"{reason}. Send 'Authorization: Bearer KEY' with one of its API_KEYS.", code=code)


class InvalidRequest(RequestError):
    """The request is wrong; the message names the field and the remedy."""

    def __init__(self, message: str, *, param: str | None = None, code: str = "invalid_value") -> None:
        super().__init__(message, param=param, code=code)


class LateChunkingUnsupported(InvalidRequest):
    """The model cannot do late chunking."""

    def __init__(self, message: str) -> None:
        super().__init__(message, param="late_chunking", code="late_chunking_unsupported")


class ModelNotFound(RequestError):
    """No loaded model has the requested name."""

    def __init__(self, message: str) -> None:
        super().__init__(message, param="model", code="model_not_found")


class BodyTooLarge(RequestError):
    """The request body exceeds the limit."""

    def __init__(self, max_body_bytes: int) -> None:
        super().__init__(
            f"The request body is larger than {max_body_bytes} bytes (MAX_BODY_BYTES). Send fewer inputs.",
            code="body_too_large",
        )


class UnsupportedMedia(RequestError):
    """The request body is not declared as plain JSON."""

    def __init__(self, header: str, value: str, remedy: str) -> None:
        super().__init__(f"{header} {value!r} is not supported. {remedy}", code="unsupported_media_type")


class ModelUnavailable(RequestError):
    """The model is known but cannot answer now."""

    def __init__(self, message: str, *, code: str) -> None:
        super().__init__(message, param="model", code=code)


class ModelOutputInvalid(RequestError):
    """The graph produced NaN or infinity, or not what it promises."""

    def __init__(
        self,
        model: str,
        reason: str = "a value that is not finite",
        code: str = "model_output_not_finite",
    ) -> None:
        super().__init__(f"Model {model} computed {reason}; the answer was withheld.", code=code)


class Overloaded(RequestError):
    """The worker holds as much as it may; the caller should come again after `retry_seconds`."""

    def __init__(self, reason: str, retry_seconds: int) -> None:
        message = f"Overloaded: {reason}. Try again in {retry_seconds} s, as Retry-After says."
        super().__init__(message, code="overloaded")
        self.retry_seconds = retry_seconds


class RateLimited(RequestError):
    """The client has made as many requests as it may; it should come again after `retry_seconds`."""

    def __init__(self, per_minute: int, retry_seconds: int) -> None:
        super().__init__(
            f"More than {per_minute} requests a minute (RATE_LIMIT). Try again in {retry_seconds} s, as "
            "Retry-After says; a request may have many inputs.",
            code="rate_limit_exceeded",
        )
        self.retry_seconds = retry_seconds


class WaitedTooLong(RequestError):
    """A request has waited for its turn until its time was over, and was not computed."""

    def __init__(self) -> None:
        super().__init__(
            "The request waited longer than REQUEST_TIMEOUT allows and was not computed. Try again later.",
            code="request_timeout",
        )


class ClientGone(RequestError):
    """The client closed its connection before it had an answer; what was not computed yet will not be."""

    def __init__(self) -> None:
        super().__init__("The client has closed the connection.", code="client_gone")
