"""The global that gunicorn serves: `gunicorn service.wsgi:app -c gunicorn.conf.py`."""

import logging.config
import os

from service import config, logs
from service.app import create_app

settings = config.from_environment(os.environ)
logging.config.dictConfig(logs.dict_config(settings))
app = create_app(settings)
