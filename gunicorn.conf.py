"""How gunicorn runs the service: service/gunicorn_conf.py says it, which an installed package has too."""

import runpy

_names = runpy.run_module("service.gunicorn_conf")
globals().update({name: value for name, value in _names.items() if not name.startswith("__")})
