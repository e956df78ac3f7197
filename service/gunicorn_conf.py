"""How gunicorn runs the service: sessions are made after the fork, requests are threads, a stop is graceful.

A wrong setting ends the start here, in the master, with one line that names the remedy.
"""

import os
import resource
import sys
from pathlib import Path
from typing import Any

from service import bundles as _bundles
from service import commands as _commands
from service import config as _config  # without the underscore gunicorn would take the names for settings
from service import handover as _handover
from service import logs as _logs
from service import metric_files as _metric_files
from service import placement as _placement
from service import rates as _rates
from service import selection as _selection
from service.errors import ConfigError


def _checked() -> tuple[_config.Settings, _placement.Plan]:
    """Read the settings and make the plan. Raises ConfigError for a start that cannot be."""
    settings = _config.from_environment(os.environ)
    _bundles.check_start(settings)
    plan = _placement.plan(settings.device, settings.workers)
    _selection.check_precision(settings.precision, plan.places[0].device)
    return settings, plan


try:
    _settings, _plan = _checked()
    # Read again by every worker: threads and memory are shared by as many as there are.
    os.environ["WORKERS"] = str(_plan.num_workers)
    _settings = _config.from_environment(os.environ)
except ConfigError as error:
    sys.exit(f"error: {error}")


def on_starting(server: Any) -> None:
    """Let a reload (HUP) replace the workers once new ones serve; one that would be an error, not at all.

    Make the folder in which the workers count, for as long as this master lives.
    """
    folder = _metric_files.make()
    os.chown(folder, server.cfg.uid, server.cfg.gid)  # the workers may be of another user
    os.environ[_metric_files.VARIABLE] = str(folder)
    server.handover = _handover.Handover(server)
    for name, meant in _commands.misspelt(os.environ, _config.VARIABLES).items():
        server.log.warning("%s is set, which is no setting; was %s meant?", name, meant)
    if warning := _placement.warning(_plan):
        server.log.warning(warning)
    reload = server.reload

    def reload_what_is_right() -> None:
        try:
            _checked()
        except ConfigError as error:
            server.log.error("reload refused, the workers stay as they are: %s", error)
        else:
            reload()

    server.reload = reload_what_is_right


def pre_fork(server: Any, worker: Any) -> None:
    """Give a new worker the place that the fewest hold: that of the one that died.

    The plan stays that of the first start: at a reload the old workers still hold the memory.
    """
    server.plan = getattr(server, "plan", _plan)
    worker.place = server.plan.least_used([other.place for other in server.WORKERS.values()])
    server.handover.prepare(worker)


def post_fork(server: Any, worker: Any) -> None:
    """Tell the worker, which reads its settings after this."""
    os.environ[_placement.VARIABLE] = server.plan.places[worker.place].encode()
    if _rate_table:
        os.environ[_rates.VARIABLE] = str(_rate_table.fileno())
    worker.early_signals = server.SIG_QUEUE


def post_worker_init(worker: Any) -> None:
    """Accept requests at once, or beside workers that serve only when there are models to answer them."""
    from service.wsgi import loading  # begins in the worker

    worker.wait_for_models(loading)


def child_exit(server: Any, worker: Any) -> None:
    """Keep what a worker has counted that has ended."""
    _metric_files.bury(Path(os.environ[_metric_files.VARIABLE]), worker.pid)


def _most_connections() -> int:
    """Return for how many connections there are file descriptors, as many as the system lets us have."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = most if most != resource.RLIM_INFINITY else FILES_WANTED
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(wanted, FILES_WANTED), most))
    return max(2 * SPARE_THREADS, min(wanted, FILES_WANTED) - OTHER_FILES)


FILES_WANTED, OTHER_FILES = 65536, 256  # of a process; those of models, sessions and pages
IDLE_CONNECTIONS = 1000  # that a worker keeps beside those that a thread serves
SPARE_THREADS = 16  # for refusals and health, when as many requests as may wait do

bind = (
    f"[{_settings.host}]:{_settings.port}" if ":" in _settings.host else f"{_settings.host}:{_settings.port}"
)
worker_class = "service.worker.Worker"
logger_class = "service.server_log.Log"
workers = _plan.num_workers
threads = _settings.threads + SPARE_THREADS
worker_connections = min(threads + IDLE_CONNECTIONS, _most_connections())
preload_app = False  # ONNX Runtime's threads would not survive the fork
timeout = 300  # seconds without a heartbeat; the heartbeat is a thread of its own, not a request
graceful_timeout = int(_settings.request_timeout) + 60  # seconds for requests that wait or run after SIGTERM
keepalive = 75  # longer than the usual load balancer's, so that it is the balancer that closes
control_socket_disable = True
worker_tmp_dir = "/dev/shm" if os.path.isdir("/dev/shm") else None  # heartbeats must not wait for a disk
_rate_table = _rates.make_table(worker_tmp_dir) if _settings.rate_limit else None  # of all workers
logconfig_dict = _logs.dict_config(_settings)
# The tokenizer's thread pool sizes itself by the host; this keeps it within the quota.
os.environ.setdefault("RAYON_NUM_THREADS", str(_settings.intra_op_threads))
