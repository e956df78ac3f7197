"""How gunicorn runs the service: sessions are made after the fork, requests are threads, a stop is graceful.

A wrong setting ends the start here, in the master, with one line that names the remedy.
"""

import os
import sys

from service import bundles as _bundles
from service import config as _config  # without the underscore gunicorn would take the names for settings
from service import logs as _logs
from service.errors import ConfigError

try:
    _settings = _config.from_environment(os.environ)
    _bundles.check_start(_settings)
except ConfigError as error:
    sys.exit(f"error: {error}")

bind = (
    f"[{_settings.host}]:{_settings.port}" if ":" in _settings.host else f"{_settings.host}:{_settings.port}"
)
worker_class = "gthread"
workers = _settings.workers
threads = _settings.threads
preload_app = False  # ONNX Runtime's threads would not survive the fork
timeout = 300  # seconds without a heartbeat; the heartbeat is a thread of its own, not a request
graceful_timeout = 60  # seconds that requests in flight have to finish after SIGTERM
keepalive = 75  # longer than the usual load balancer's, so that it is the balancer that closes
control_socket_disable = True
worker_tmp_dir = "/dev/shm" if os.path.isdir("/dev/shm") else None  # heartbeats must not wait for a disk
logconfig_dict = _logs.dict_config(_settings)
# The tokenizer's thread pool sizes itself by the host; this keeps it within the quota.
os.environ.setdefault("RAYON_NUM_THREADS", str(_settings.intra_op_threads))
