"""`jina-onnx-serve`: gunicorn with the application and the configuration of this package. Decides nothing.

The same as `gunicorn service.wsgi:app -c gunicorn.conf.py`, in any folder; options of gunicorn may follow.
"""

from __future__ import annotations

import sys
from pathlib import Path

from gunicorn.app import wsgiapp

CONFIGURATION = Path(__file__).with_name("gunicorn_conf.py")  # a file, which a reload reads again
ARGUMENTS = ["service.wsgi:app", "-c", str(CONFIGURATION)]


def main() -> None:
    """Run the service until it is told to stop."""
    if sys.argv[1:4] != ARGUMENTS:  # gunicorn that replaces itself (USR2) has them already
        sys.argv[1:1] = ARGUMENTS
    wsgiapp.run(prog="jina-onnx-serve")
