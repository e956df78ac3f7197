"""`jina-onnx-serve`: gunicorn with the application and the configuration of this package. Decides nothing.

The same as `gunicorn service.wsgi:app -c gunicorn.conf.py`, in any folder; options of gunicorn may follow.
"""

from __future__ import annotations

import sys
from pathlib import Path

from gunicorn.app import wsgiapp

CONFIGURATION = Path(__file__).with_name("gunicorn_conf.py")  # a file, which a reload reads again
HELP = """\
usage: jina-onnx-serve [OPTION OF GUNICORN ...]

Serve the models baked in MODELS_DIR over the HTTP format of Jina's API, until Ctrl-C. Settings are
environment variables; these and their defaults are asked for most:

  HOST=0.0.0.0 PORT=8080      where to listen
  MODELS_DIR=onnx_models      folder of bundles, which jina-onnx-convert makes
  MODELS_TO_LOAD=all          comma-separated names, or every bundle
  DEVICE=auto                 auto, cpu, cuda or cuda:N
  PRECISION=auto              fp32, int8, int8-block, int4, fp16 or bf16; auto: chosen for each model
  WORKERS=auto                processes; auto: one, or one for each GPU
  API_KEYS=                   comma-separated keys, of which a request must show one; empty: none is asked for

All of them: docs/settings.md of the project. When it runs, /docs shows the API and /playground tries it.
Options are gunicorn's and seldom needed, such as --pid FILE.
"""
ARGUMENTS = ["service.wsgi:app", "-c", str(CONFIGURATION)]


def main() -> None:
    """Run the service until it is told to stop, or print what its settings are."""
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(HELP, end="")
        return
    if sys.argv[1:4] != ARGUMENTS:  # gunicorn that replaces itself (USR2) has them already
        sys.argv[1:1] = ARGUMENTS
    wsgiapp.run(prog="jina-onnx-serve")
