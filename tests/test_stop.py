"""Stop, reload and kill under load: no request that was taken is lost, but those of a killed worker."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from service import placement
from tests import steady
from tests.conftest import MODEL, START_SECONDS, Live
from tests.processes import LOCALHOST, PROJECT
from tests.steady import ROUTE, Client, End, Log, wait_until
from tests.test_gunicorn import body, embed, raw, read_answer, workers

Serve = Callable[..., AbstractContextManager[Live]]
LOADING_SECONDS = 1.0
SINGLE = [[f"text {number}"] for number in range(6)]
BULK = [[f"bulk {number} {row}" for row in range(64)] for number in range(4)]
CHURNING = [[f"new connection {number}"] for number in range(4)]
ALL = [*SINGLE, *BULK, *CHURNING]
NUM_CHECKED = 300
UNHURRIED = 20.0  # seconds after which a stop counts as stuck; gunicorn's own took 60
SLOW_LOADING = f"""
import time
from service.bundles import Bundle

load_at_once = Bundle.load

def load(bundle):
    time.sleep({LOADING_SECONDS})
    return load_at_once(bundle)

Bundle.load = load
"""


@pytest.fixture
def slow(tmp_path: Path) -> dict[str, str]:
    """Settings that make a model take its time to load, through a module that Python loads first."""
    (tmp_path / "sitecustomize.py").write_text(SLOW_LOADING)
    return {"PYTHONPATH": f"{tmp_path}{os.pathsep}{PROJECT}"}


def port_of(live: Live) -> int:
    return int(live.url.rpartition(":")[2])


def load(live: Live, streams: Sequence[Sequence[str]], num_churning: int = 0) -> Any:
    return steady.load(port_of(live), MODEL, streams, num_churning)


def all_ready(live: Live, count: int) -> set[int]:
    """Wait until all of the first workers have loaded; return their process ids."""
    wait_until(lambda: live.log.read_text().count("model ready") == count)
    return workers(live)


def check_answers(expected: dict[str, np.ndarray], log: Log) -> None:
    """Check that answers are those of their own texts; of many answers, some from all the time."""
    answered = [record for record in log.records if record.status == 200]
    for record in answered[:: 1 + len(answered) // NUM_CHECKED]:
        found = np.array([item["embedding"] for item in record.json()["data"]])
        np.testing.assert_allclose(found, expected[record.texts[0]], rtol=0, atol=1e-5)


def expect(live: Live, streams: Sequence[Sequence[str]]) -> dict[str, np.ndarray]:
    return {texts[0]: embed(live, list(texts)) for texts in streams}


def kill_master(live: Live) -> None:
    live.process.send_signal(signal.SIGTERM)


def press_ctrl_c(live: Live) -> None:
    """Send what a terminal sends: to the master and to the workers."""
    for pid in (live.process.pid, *workers(live)):
        os.kill(pid, signal.SIGINT)


def is_replaced(live: Live, before: set[int]) -> bool:
    now = workers(live)
    return len(now) == len(before) and not now & before


def client_ports(pid: int, port: int) -> set[int]:
    """Return the ports of the clients whose connections a worker holds."""
    links = Path(f"/proc/{pid}/fd").iterdir()
    inodes = {link.readlink().name.removeprefix("socket:[").rstrip("]") for link in links}
    found = set()
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        own, remote, inode = (line.split()[index] for index in (1, 2, 9))
        if inode in inodes and int(own.split(":")[1], 16) == port:
            found.add(int(remote.split(":")[1], 16))
    return found - {0}


# --- stop ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "end"),
    [(1, kill_master), (1, press_ctrl_c), pytest.param(2, kill_master, marks=pytest.mark.full)],
)
def test_a_stop_under_load_answers_all_that_was_taken(
    tiny_models: Path, serve: Serve, count: int, end: Callable[[Live], None]
) -> None:
    with serve(tiny_models, WORKERS=str(count)) as live:
        all_ready(live, count)
        expected = expect(live, ALL)
        with load(live, ALL, len(CHURNING)) as log:
            before = log.answered()
            end(live)
            assert live.process.wait(START_SECONDS) == 0
            wait_until(lambda: log.count()["refused"] >= len(ALL))
    assert log.answered() > before, "nothing was in flight at the stop"
    assert set(log.count()) == {"200", "refused"}
    check_answers(expected, log)


@pytest.mark.parametrize("num_clients", [48])
def test_a_stop_answers_a_deep_queue(tiny_models: Path, serve: Serve, num_clients: int) -> None:
    """Many more requests than run at a time wait when the stop comes."""
    log, texts = Log(), [f"row {row} of the queue" for row in range(512)]
    with serve(tiny_models, THREADS="64", INTRA_OP_THREADS="1") as live, ExitStack() as open_ones:
        clients = [open_ones.enter_context(Client(port_of(live), MODEL, log)) for _ in range(num_clients)]
        expected = {texts[0]: embed(live, texts)}
        with ThreadPoolExecutor(num_clients) as pool:
            done = [pool.submit(client.send, texts) for client in clients]
            (worker,) = workers(live)
            wait_until(lambda: len(client_ports(worker, port_of(live))) == num_clients)
            assert not all(future.done() for future in done)
            in_flight = num_clients - len(log.records)
            kill_master(live)
            assert live.process.wait(START_SECONDS) == 0
    assert in_flight > 16, "the queue must be deep"
    assert log.count() == {"200": num_clients}
    assert sum(record.is_last for record in log.records) >= in_flight - 16  # told that the service goes
    check_answers(expected, log)


@pytest.mark.full
def test_idle_connections_at_a_stop_are_served_once_more_or_closed(tiny_models: Path, serve: Serve) -> None:
    """A request sent just as its idle connection is closed is the race of HTTP/1.1: counted exactly."""
    log, num_clients, seconds = Log(), 60, 4.0
    with serve(tiny_models) as live, ExitStack() as open_ones:
        clients = [open_ones.enter_context(Client(port_of(live), MODEL, log)) for _ in range(num_clients)]
        assert all(client.send(["hello"]).status == 200 for client in clients)
        kill_master(live)
        begin = time.monotonic()
        for number, client in enumerate(clients):  # from at once to twice as late as they are kept
            time.sleep(max(0, begin + seconds * number / num_clients - time.monotonic()))
            client.send(["hello again"])
        assert live.process.wait(START_SECONDS) == 0
    later = log.records[num_clients:]
    ends = [record.end for record in later]
    assert set(ends) == {End.ANSWERED, End.KEPT_CLOSED}
    answered = [record for record in later if record.end == End.ANSWERED and record.begin > begin + 1]
    assert answered and all(record.is_last for record in answered)
    first_closed = ends.index(End.KEPT_CLOSED)
    assert set(ends[first_closed:]) == {End.KEPT_CLOSED}, "closed while another was kept"
    assert later[first_closed].begin - begin > 1.5  # the grace is 2 s


@pytest.mark.full
def test_a_stop_does_not_wait_for_silent_connections(tiny_models: Path, serve: Serve) -> None:
    with serve(tiny_models) as live, socket.create_connection((LOCALHOST, port_of(live))):
        time.sleep(6)  # until the worker has given its thread to others
        kill_master(live)
        assert live.process.wait(UNHURRIED) == 0


def test_clients_that_keep_closed_connections_stop_nobody(tiny_models: Path, serve: Serve) -> None:
    """30 clients do not close their side: each would hold gunicorn's only loop for 2 s."""
    head = b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    with serve(tiny_models) as live, ExitStack() as open_ones:
        for _ in range(30):
            lazy = socket.create_connection((LOCALHOST, port_of(live)))
            open_ones.enter_context(lazy)
            lazy.sendall(head)
        client = open_ones.enter_context(Client(port_of(live), MODEL, Log(), seconds=UNHURRIED))
        for _ in range(3):
            assert client.send(["hello"]).status == 200
        kill_master(live)
        assert live.process.wait(UNHURRIED) == 0


def send_slowly(live: Live, seconds: float) -> tuple[int, Any]:
    """Send a request whose last byte comes so much later than its first."""
    content = body("hello")
    with socket.create_connection((LOCALHOST, port_of(live)), timeout=60) as connection:
        connection.sendall(raw("POST", ROUTE, content)[: -len(content)])
        for byte in content:
            time.sleep(seconds / len(content))
            connection.sendall(bytes([byte]))
        with connection.makefile("rb") as stream:
            return read_answer(stream)


@pytest.mark.full
def test_a_request_that_outlasts_the_grace_is_answered_at_a_reload(tiny_models: Path, serve: Serve) -> None:
    with (
        serve(tiny_models, GUNICORN_CMD_ARGS="--graceful-timeout 1") as live,
        ThreadPoolExecutor(1) as pool,
    ):
        (before,) = all_ready(live, 1)
        answer = pool.submit(send_slowly, live, 6.0)
        wait_until(lambda: client_ports(before, port_of(live)))
        reload_once(live)
        assert answer.result()[0] == 200
        wait_until(lambda: is_replaced(live, {before}))


EARLY = f"""
import time
from pathlib import Path
exec(compile(Path({str(PROJECT / "gunicorn.conf.py")!r}).read_text(), "gunicorn.conf.py", "exec"))
told = post_fork

def post_fork(server, worker):
    told(server, worker)
    Path({{marker!r}}).touch()
    time.sleep(1)
"""


@pytest.mark.full
def test_a_stop_right_after_the_fork_is_heard(tiny_models: Path, tmp_path: Path, serve: Serve) -> None:
    """Until a worker has handlers of its own, signals go to those that it has from the master."""
    configuration, marker = tmp_path / "early.py", tmp_path / "forked"
    configuration.write_text(EARLY.format(marker=str(marker)))
    with serve(tiny_models, wait=False, configuration=str(configuration)) as live:
        wait_until(marker.exists)
        kill_master(live)
        assert live.process.wait(UNHURRIED) == 0


# --- reload ----------------------------------------------------------------------------------------------


def test_a_worker_that_loads_is_not_asked_while_another_serves(
    tiny_models: Path, tmp_path: Path, serve: Serve
) -> None:
    """At the first start both accept, so that somebody says that it loads; then one is ready long before."""
    first, may_load = tmp_path / "first", tmp_path / "may_load"
    wait = f"""
    if {placement.VARIABLE!r} in os.environ:  # not in the master
        try:
            with open({str(first)!r}, "x") as file:
                file.write(str(os.getpid()))
        except FileExistsError:
            if open({str(first)!r}).read() != str(os.getpid()):
                while not os.path.exists({str(may_load)!r}):
                    time.sleep(0.05)
"""
    (tmp_path / "sitecustomize.py").write_text(
        "import os\n" + SLOW_LOADING.replace(f"    time.sleep({LOADING_SECONDS})\n", wait)
    )
    pythonpath = f"{tmp_path}{os.pathsep}{PROJECT}"
    with serve(tiny_models, wait=False, WORKERS="2", PYTHONPATH=pythonpath) as live:
        wait_until(lambda: live.log.read_text().count("model ready") == 1)

        def all_served() -> bool:
            statuses = []
            for _ in range(20):
                with httpx.Client(base_url=live.url) as client:
                    statuses.append(client.post(ROUTE, json={"model": MODEL, "input": "a"}).status_code)
            return set(statuses) == {200}

        wait_until(all_served)
        assert live.log.read_text().count("model ready") == 1, "the other must still load"
        may_load.touch()
        wait_until(lambda: live.log.read_text().count("model ready") == 2)


def reload_once(live: Live) -> None:
    live.process.send_signal(signal.SIGHUP)


def reload_in_a_row(live: Live) -> None:
    for _ in range(4):
        live.process.send_signal(signal.SIGHUP)
        time.sleep(0.3)


@pytest.mark.parametrize(
    ("count", "reload"),
    [
        (1, reload_once),
        pytest.param(2, reload_once, marks=pytest.mark.full),
        pytest.param(1, reload_in_a_row, marks=pytest.mark.full),
        pytest.param(2, reload_in_a_row, marks=pytest.mark.full),
    ],
)
def test_a_reload_under_load_is_not_noticed(
    tiny_models: Path, serve: Serve, slow: dict[str, str], count: int, reload: Callable[[Live], None]
) -> None:
    with serve(tiny_models, WORKERS=str(count), **slow) as live:
        before = all_ready(live, count)
        expected = expect(live, ALL)
        with load(live, ALL, len(CHURNING)) as log:
            reload(live)
            wait_until(lambda: is_replaced(live, before))
            if reload is reload_in_a_row:  # those that came meanwhile are one more, after the first
                between = workers(live)
                wait_until(lambda: is_replaced(live, between))
            answered = log.answered()
            wait_until(lambda: log.answered() > answered + 2 * len(ALL))
        ready = live.log.read_text().count("model ready")
    assert set(log.count()) == {"200"}
    assert ready == count * (3 if reload is reload_in_a_row else 2)
    check_answers(expected, log)


@pytest.mark.full
@pytest.mark.parametrize("count", [1, 2])
def test_a_stop_during_a_reload(tiny_models: Path, serve: Serve, slow: dict[str, str], count: int) -> None:
    with serve(tiny_models, WORKERS=str(count), **slow) as live:
        before = all_ready(live, count)
        with load(live, ALL, len(CHURNING)) as log:
            reload_once(live)
            wait_until(lambda: len(workers(live) - before) == count)
            kill_master(live)
            assert live.process.wait(UNHURRIED) == 0
    assert set(log.count()) <= {"200", "refused"}


@pytest.mark.full
def test_a_new_worker_that_dies_while_it_loads_is_replaced(
    tiny_models: Path, serve: Serve, slow: dict[str, str]
) -> None:
    with serve(tiny_models, **slow) as live:
        before = all_ready(live, 1)
        with load(live, ALL, len(CHURNING)) as log:
            reload_once(live)
            wait_until(lambda: workers(live) - before)
            (loading,) = workers(live) - before
            os.kill(loading, signal.SIGKILL)
            wait_until(lambda: is_replaced(live, before | {loading}) or is_replaced(live, before))
        assert loading not in workers(live)
    assert set(log.count()) == {"200"}


# --- single workers --------------------------------------------------------------------------------------


def test_a_killed_worker_takes_only_its_own_requests_with_it(
    tiny_models: Path, serve: Serve, slow: dict[str, str]
) -> None:
    with serve(tiny_models, WORKERS="2", **slow) as live:
        killed, other = sorted(all_ready(live, 2))
        with ExitStack() as loads:
            logs = []
            for sleeper, waker in ((killed, other), (other, killed)):  # so that each has its clients
                os.kill(sleeper, signal.SIGSTOP)
                os.kill(waker, signal.SIGCONT)
                logs.append(loads.enter_context(load(live, [*SINGLE, *BULK])))
            os.kill(other, signal.SIGCONT)
            ports = {pid: client_ports(pid, port_of(live)) for pid in (killed, other)}
            os.kill(killed, signal.SIGKILL)
            wait_until(lambda: live.log.read_text().count("model ready") == 3)
            answered = sum(log.answered() for log in logs)
            wait_until(lambda: sum(log.answered() for log in logs) > answered + 50)
        assert len(workers(live)) == 2
    records = [record for log in logs for record in log.records]
    unanswered = [record for record in records if record.end != End.ANSWERED]
    assert ports[killed] and ports[other]
    assert {record.port for record in unanswered} == ports[killed]  # each of its clients had one in work
    assert len(unanswered) == len(ports[killed])
    assert {record.end for record in unanswered} <= {End.KEPT_CLOSED, End.CUT}
    assert {record.status for record in records if record.end == End.ANSWERED} == {200}


@pytest.mark.full
def test_the_only_worker_killed_comes_back_and_says_that_it_loads(
    tiny_models: Path, serve: Serve, slow: dict[str, str]
) -> None:
    """Nobody else could answer meanwhile: 503 with Retry-After is said at once, as at the first start."""
    with serve(tiny_models, **slow) as live:
        (killed,) = all_ready(live, 1)
        with load(live, SINGLE) as log:
            os.kill(killed, signal.SIGKILL)
            wait_until(lambda: log.count()["503"])
            answered = log.answered()
            wait_until(lambda: log.answered() > answered + 50)
    loading = [record for record in log.records if record.status == 503]
    assert {record.json()["error"]["code"] for record in loading} == {"model_loading"}
    assert log.count()["kept_closed"] + log.count()["cut"] == len(SINGLE)
    assert set(log.count()) <= {"200", "503", "kept_closed", "cut"}


@pytest.mark.full
@pytest.mark.parametrize("count", [1, 2])
def test_a_worker_that_is_told_to_end_is_replaced(
    tiny_models: Path, serve: Serve, slow: dict[str, str], count: int
) -> None:
    with serve(tiny_models, WORKERS=str(count), **slow) as live:
        ended = min(all_ready(live, count))
        with load(live, ALL, len(CHURNING)) as log:
            os.kill(ended, signal.SIGTERM)
            wait_until(lambda: live.log.read_text().count("model ready") == count + 1)
            answered = log.answered()
            wait_until(lambda: log.answered() > answered + 50)
    assert set(log.count()) == ({"200"} if count == 2 else {"200", "503"})


@pytest.mark.full
@pytest.mark.parametrize("count", [1, 2])
def test_more_and_fewer_workers(tiny_models: Path, serve: Serve, slow: dict[str, str], count: int) -> None:
    with serve(tiny_models, WORKERS=str(count), **slow) as live:
        before = all_ready(live, count)
        with load(live, ALL, len(CHURNING)) as log:
            live.process.send_signal(signal.SIGTTIN)
            wait_until(lambda: live.log.read_text().count("model ready") == count + 1)
            assert len(workers(live)) == count + 1
            live.process.send_signal(signal.SIGTTOU)
            wait_until(lambda: len(workers(live)) == count)
            answered = log.answered()
            wait_until(lambda: log.answered() > answered + 50)
        assert len(workers(live) - before) == 1
    assert set(log.count()) == {"200"}
