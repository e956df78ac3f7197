"""The HTTP service: opens bundles and answers in the Jina format."""

import os

# NOTE: ONNX Runtime reports to its maker from the moment it is imported, unless told not to before.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
