"""The global that gunicorn serves: `gunicorn service.wsgi:app -c gunicorn.conf.py`."""

import logging.config
import os

from service import config, logs, placement, rates
from service.app import create_app

settings = config.from_environment(os.environ)
logging.config.dictConfig(logs.dict_config(settings))
# gunicorn's master hands every worker its place; under another server this process is the only one.
place = placement.from_environment(os.environ) or placement.alone(settings.device)
app, loading = create_app(settings, place, rates.table_from_environment(os.environ))
