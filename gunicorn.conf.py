"""How gunicorn runs the service: service/gunicorn_conf.py says it, which an installed package has too."""

import runpy

globals().update(runpy.run_module("service.gunicorn_conf"))
