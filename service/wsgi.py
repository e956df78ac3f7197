"""The global that gunicorn serves: `gunicorn service.wsgi:app -c gunicorn.conf.py`."""

import logging.config
import os

from service import config, logs, metric_files, placement, rates
from service.app import create_app

settings = config.from_environment(os.environ)
logging.config.dictConfig(logs.dict_config(settings))
# gunicorn's master hands every worker its place; under another server this process is the only one.
place = placement.from_environment(os.environ) or placement.alone(settings.device)
# Its master has also made a table of rates and a folder in which all workers count.
rate_table, metrics_folder = (
    rates.table_from_environment(os.environ),
    metric_files.from_environment(os.environ),
)
app, loading = create_app(settings, place, rate_table, metrics_folder)
