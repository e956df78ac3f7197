"""Processes that count in one folder: who is asked answers for all, those included that have ended."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from service import metric_files
from service.errors import ConfigError
from tests.processes import PROJECT

# As gunicorn's master and its workers do it, in a process without the threads of others.
PLAY = """
import json, os, signal, sys
from service import metric_files
from service.errors import ConfigError

folder = metric_files.make()
os.environ[metric_files.VARIABLE] = str(folder)

def metrics():
    from service.app import make_metrics  # only after a fork: the library looks for the folder
    return make_metrics(metric_files.from_environment(os.environ))

def fork(play):
    pid = os.fork()
    if not pid:
        status = 1
        try:
            play(metrics())
            status = 0
        finally:
            os._exit(status)
    return pid

def wait(pid):
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) in (0, -signal.SIGKILL)

def ended(play):
    pid = fork(play)
    wait(pid)
    return pid

def files():
    return sorted(path.name for path in folder.iterdir())
"""


def play(script: str) -> dict[str, object]:
    """Run a script after `PLAY`; return what it prints as JSON."""
    ended = subprocess.run(
        [sys.executable, "-c", PLAY + script],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert ended.returncode == 0, ended.stderr
    found: dict[str, object] = json.loads(ended.stdout)
    return found


COUNT = """
from types import SimpleNamespace
from service.observing import Answer, Source

def serve(metrics):
    metrics.answered(Answer("/v1/embeddings", 200, 0.02, "tiny", 7))
    metrics.ran(SimpleNamespace(source=Source("tiny", "fp32")), 3, 25, 5, 0.004)
    metrics.queue_changed(1, 40)
    metrics.loaded("tiny", "fp32", "cpu")

def kill(metrics):
    serve(metrics)
    os.kill(os.getpid(), signal.SIGKILL)

def text(metrics):
    (folder / "text").write_bytes(metrics.render()[0])

def scrape():
    ended(text)
    lines = (folder / "text").read_text().splitlines()
    (folder / "text").unlink()
    series = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    return {name.removeprefix("jina_onnx_server_"): float(value) for name, value in series.items()}
"""
LABELS = '{model="tiny",part="text",precision="fp32"}'


def test_the_living_and_the_dead_are_summed_and_only_the_living_hold() -> None:
    found = play(
        COUNT
        + """
first = ended(serve)  # not buried: as the others see it, it holds its requests
second = ended(kill)
metric_files.bury(folder, second)
one = scrape()
metric_files.bury(folder, first)
print(json.dumps({"one": one, "none": scrape()}))
"""
    )
    for name in ("one", "none"):
        values = found[name]
        assert isinstance(values, dict)
        assert values['requests_total{route="/v1/embeddings",status="200"}'] == 2
        assert values['tokens_total{model="tiny"}'] == 14
        assert values["batch_tokens_sum" + LABELS] == 60
        assert values["batch_tokens_count" + LABELS] == 2
        assert values["batch_tokens_bucket" + LABELS.replace("{", '{le="32.0",')] == 2
        assert values["batch_tokens_bucket" + LABELS.replace("{", '{le="16.0",')] == 0
        assert values["queue_requests"] == (1 if name == "one" else 0)
        assert ('model_info{device="cpu",model="tiny",precision="fp32"}' in values) == (name == "one")


def test_files_stay_as_few_as_the_living_however_many_have_died() -> None:
    found = play(
        COUNT
        + """
for _ in range(12):
    metric_files.bury(folder, ended(serve))
print(json.dumps({"files": files(), "values": scrape()}))
"""
    )
    assert found["files"] == ["counter_dead.db", "histogram_dead.db"]
    values = found["values"]
    assert isinstance(values, dict)
    assert values['tokens_total{model="tiny"}'] == 12 * 7


def test_a_burial_beside_a_reader_waits_for_the_next_and_nothing_counts_twice() -> None:
    found = play(
        COUNT
        + """
first = ended(serve)
with metric_files.locked(folder, is_shared=True):
    metric_files.bury(folder, first)
before = files()
values = scrape()
metric_files.bury(folder, ended(serve))
print(json.dumps({"before": before, "pid": first, "values": values, "after": files(), "later": scrape()}))
"""
    )
    assert found["before"] == [f"counter_{found['pid']}.db", f"histogram_{found['pid']}.db"]
    assert "counter_dead.db" in found["after"] and f"counter_{found['pid']}.db" not in found["after"]  # type: ignore[operator]
    assert found["values"]['tokens_total{model="tiny"}'] == 7  # type: ignore[index]
    assert found["later"]['tokens_total{model="tiny"}'] == 14  # type: ignore[index]


def test_the_living_keep_their_files_when_another_is_buried() -> None:
    found = play(
        COUNT
        + """
ready, go = os.pipe(), os.pipe()

def stay(metrics):
    serve(metrics)
    os.write(ready[1], b"x")
    os.read(go[0], 1)
    serve(metrics)

living = fork(stay)
os.read(ready[0], 1)
metric_files.bury(folder, ended(serve))
alive, during = metric_files.living(folder), scrape()
os.write(go[1], b"x")
wait(living)
print(json.dumps({"pid": living, "living": alive, "during": during, "after": scrape()}))
"""
    )
    assert found["living"] == [found["pid"]]
    assert found["during"]['tokens_total{model="tiny"}'] == 14  # type: ignore[index]
    assert found["after"]['tokens_total{model="tiny"}'] == 21  # type: ignore[index]


def test_the_folder_is_private_and_goes_with_its_maker_alone() -> None:
    found = play(
        """
def leave(metrics):
    sys.exit(0)

pid = os.fork()
if not pid:
    sys.exit(0)  # as a worker ends: what the master wants done at its end is called here too
wait(pid)
print(json.dumps({"folder": str(folder), "is_there": folder.is_dir(), "mode": folder.stat().st_mode & 0o777}))
"""
    )
    assert (found["is_there"], found["mode"]) == (True, 0o700)
    assert not Path(str(found["folder"])).exists()


def test_without_a_folder_a_process_is_alone() -> None:
    assert metric_files.from_environment({}) is None


@pytest.mark.parametrize("given", ["", "/nowhere/at/all"])
def test_a_folder_that_is_none_is_refused(given: str) -> None:
    with pytest.raises(ConfigError, match=metric_files.VARIABLE):
        metric_files.from_environment({metric_files.VARIABLE: given})


def test_a_folder_of_another_server_is_taken(tmp_path: Path) -> None:
    assert metric_files.from_environment({metric_files.VARIABLE: str(tmp_path)}) == tmp_path
    assert os.listdir(tmp_path) == []
