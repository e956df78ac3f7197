"""What the script of a client is given, and how it hands back what the client did. Standard library only.

A script is run as `python use_CLIENT.py GIVEN.json DONE.json` by the interpreter that has the client.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

GIVEN = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
URL, KEY, WRONG_KEY = GIVEN["url"], GIVEN["key"], "a-wrong-key-2291"
TEXTS, QUERY, DOCUMENTS = GIVEN["texts"], GIVEN["query"], GIVEN["documents"]
PICTURE = GIVEN["picture"]  # the path of a PNG
EMBEDDING, MULTIMODAL, RERANKER = "jina-embeddings-v3", "jina-embeddings-v4", "jina-reranker-v3"


def report(calls: Mapping[str, Callable[[], Any]]) -> None:
    """Make the calls and write what each returned or raised."""
    done = {name: outcome(call) for name, call in calls.items()}
    Path(sys.argv[2]).write_text(json.dumps(done, default=lambda array: array.tolist()), encoding="utf-8")


def outcome(call: Callable[[], Any]) -> dict[str, Any]:
    """Make a call; tell its value or its exception."""
    try:
        return {"returned": call()}
    except Exception as error:  # noqa: BLE001 - what a client raises is what the test looks at
        return {"raised": type(error).__name__, "message": str(error), **facts(error)}


def facts(error: Exception) -> dict[str, Any]:
    """Tell what else an exception knows: a status, the code of the service's error."""
    return {
        "status": getattr(error, "status_code", getattr(error, "status", None)),
        "code": getattr(error, "code", None),
    }
