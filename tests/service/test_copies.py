"""Prepacked copies: the same answers to the last bit, what they share, and what becomes of broken ones."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import resource
import shutil
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from convert.bake import BakeRequest, Verification, bake
from convert.catalog import RECIPES
from convert.recipe import DEFAULT_PRECISIONS
from service import (
    cache_lock,
    cleaning,
    copies,
    copy_records,
    host,
    inference,
    logs,
    prepacking,
    providers,
    wire,
)
from service import manifest as contract
from service.compacting import BLOBS
from service.copies import Copies, digest_of
from service.errors import BundleError, ModelUnavailable
from service.graphs import Graphs
from service.manifest import MANIFEST_FILE, Precision
from service.session import Array, Session, SessionSettings
from service.windows import Patches, tower_inputs
from tests import qwen_vl, tiny
from tests.conftest import START_SECONDS

V3, QWEN3, LISTWISE, V4 = (
    "jina-embeddings-v3", "qwen3-embedding-0.6b", "jina-reranker-v3", "jina-embeddings-v4",
)  # fmt: skip
WRITERS = {name: tiny.WRITERS[name] for name in (V3, QWEN3, LISTWISE, V4)}
SETTINGS = SessionSettings(num_threads=2)
GRAPH = "fp32/separation.onnx"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models folder with a tiny model of each family, in every precision of a usual bake."""
    out = tmp_path_factory.mktemp("models")
    for name, write in WRITERS.items():
        source = str(write(out / ".checkpoints" / name))
        bake(
            RECIPES[name],
            BakeRequest(
                out=out, source=source, precisions=DEFAULT_PRECISIONS, verification=Verification.SKIP
            ),
        )
    return out


@pytest.fixture(autouse=True)
def no_floor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copies, "MIN_WEIGHTS_BYTES", 0)


@pytest.fixture
def bundle(models: Path, tmp_path: Path) -> Path:
    """A bundle to be changed."""
    return Path(shutil.copytree(models / V3, tmp_path / "models" / V3))


@pytest.fixture
def lines() -> Iterator[list[logging.LogRecord]]:
    """The lines that the service logs."""
    found: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = found.append  # type: ignore[method-assign,assignment]
    logger = logging.getLogger(logs.LOGGER_NAME)
    logger.addHandler(handler)
    yield found
    logger.removeHandler(handler)


def warnings_of(lines: list[logging.LogRecord]) -> list[str]:
    return [getattr(line, logs.FIELDS)["reason"] for line in lines if line.levelno == logging.WARNING]


def copies_in(cache_dir: Path, bundle: Path, *, with_hashes: bool = False) -> Copies:
    return Copies(cache_dir, bundle, contract.load(bundle), digest_of(bundle), with_hashes)


def graphs_of(bundle: Path, cache_dir: Path | None, precision: Precision = Precision.FP32) -> Graphs:
    found = copies_in(cache_dir, bundle) if cache_dir else None
    return Graphs(bundle, contract.load(bundle), precision, SETTINGS, found)


def make(found: Copies, file: str) -> Path:
    """Make a copy as a maker does, in this process."""
    found.folder.mkdir(parents=True, exist_ok=True)
    prepacking.make(prepacking.Wanted(found.bundle, file, found.folder, found.manifest_sha256))
    return found.folder / file


def files_of(model: str) -> list[str]:
    recipe = RECIPES[model].manifest
    names = recipe.task_variants if RECIPES[model].has_adapters else ("model",)
    vision = ["vision/model.onnx"] if recipe.vision else []
    return [f"{precision}/{name}.onnx" for precision in DEFAULT_PRECISIONS for name in names] + vision


def inputs_of(bundle: Path, file: str) -> list[Mapping[str, Array]]:
    """Draw inputs of a graph: one text, texts of several lengths; or images."""
    draw, manifest = np.random.default_rng(5), contract.load(bundle)
    if manifest.vision and file == manifest.vision.file:
        grids = [(6, 10), (4, 4)]
        images = [
            Patches(draw.standard_normal((h * w, qwen_vl.SIZES.patch_values)).astype(np.float32), (h, w))
            for h, w in grids
        ]
        return [tower_inputs(images[:1], manifest.vision)[0], tower_inputs(images, manifest.vision)[0]]
    texts = [draw.integers(0, 64, length) for length in (11, 3, 29)]
    stack = inference.stacker(manifest)
    return [stack(texts[:1]), stack(texts)]


@pytest.mark.parametrize(("model", "file"), [(model, file) for model in WRITERS for file in files_of(model)])
def test_a_copy_answers_as_its_bundle_to_the_last_bit(
    models: Path, tmp_path: Path, model: str, file: str
) -> None:
    bundle = models / model
    own = Session(bundle / file, SETTINGS)
    copy = Session(make(copies_in(tmp_path, bundle), file), SETTINGS, is_prepacked=True)
    assert copy.output_names == own.output_names
    for inputs in inputs_of(bundle, file):
        outputs = [name for name in own.output_names if name != "projected"]  # wants markers in the text
        for one, other in zip(own.run(inputs, outputs), copy.run(inputs, outputs), strict=True):
            assert one.tobytes() == other.tobytes()


def test_only_texts_have_narrow_runs(models: Path, tmp_path: Path) -> None:
    """An image takes all threads and its run gives all memory back, which a second session would keep."""
    bundle, settings = models / V4, replace(SETTINGS, num_lanes=2)
    graphs = Graphs(bundle, contract.load(bundle), Precision.FP32, settings, copies_in(tmp_path, bundle))
    assert graphs.session("retrieval").has_narrow
    assert not graphs.vision_session().has_narrow


def test_tasks_share_in_the_cache_what_they_share_in_the_bundle(models: Path, tmp_path: Path) -> None:
    bundle, found = models / V3, copies_in(tmp_path, models / V3)
    weights = bundle / "fp32" / "weights.data"
    tables = set()
    for file in files_of(V3)[: len(RECIPES[V3].manifest.tasks)]:
        graph = make(found, file)
        places = {each.name: each.entries for each in wire.external_tensors(graph.read_bytes())}
        own = {each.name: each.entries for each in wire.external_tensors((bundle / file).read_bytes())}
        tables.add(tuple(places["word_embeddings"].items()))
        for name, entries in places.items():
            is_packed = "prepacked_0" in entries
            assert entries["location"] == (f"{graph.stem}.data" if is_packed else weights.name)
            assert is_packed or entries == own[name]
        packed = sum(int(entries["length"]) for entries in places.values() if "prepacked_0" in entries)
        assert packed <= graph.with_suffix(".data").stat().st_size <= 2 * packed + 4096 * 2 * len(places)
    assert len(tables) == 1
    assert (found.folder / "fp32" / weights.name).samefile(weights)


def test_a_copy_is_made_once_and_then_found(models: Path, tmp_path: Path) -> None:
    found = copies_in(tmp_path, models / V3)
    graph = found.find(GRAPH)
    key = f"{providers.RUNTIME_VERSION}-{host.instruction_set()}"
    assert graph == tmp_path / key / found.manifest_sha256 / GRAPH
    made = graph.stat().st_ino
    assert found.find(GRAPH) == graph
    assert graph.stat().st_ino == made
    assert not list(tmp_path.glob(f"*/*/{prepacking.STAGING}"))


def test_without_links_one_copy_of_the_weights_serves_all_graphs(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*names: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    found = copies_in(tmp_path, models / V3)
    make(found, GRAPH)
    copied = found.folder / "fp32" / "weights.data"
    made = copied.stat().st_ino
    assert made != (models / V3 / "fp32" / "weights.data").stat().st_ino
    make(found, "fp32/classification.onnx")
    assert copied.stat().st_ino == made
    Session(found.folder / "fp32/classification.onnx", SETTINGS, is_prepacked=True)


# --- faults -----------------------------------------------------------------------------------------------


def test_a_truncated_copy_is_made_again(models: Path, tmp_path: Path) -> None:
    found = copies_in(tmp_path, models / V3)
    graph = make(found, GRAPH)
    size = graph.with_suffix(".data").stat().st_size
    with graph.with_suffix(".data").open("r+b") as file:
        file.truncate(size // 2)
    assert found.find(GRAPH) == graph
    assert graph.with_suffix(".data").stat().st_size == size
    Session(graph, SETTINGS, is_prepacked=True)


def test_a_flipped_byte_in_a_copy_is_found_where_hashes_are_checked(models: Path, tmp_path: Path) -> None:
    found = copies_in(tmp_path, models / V3, with_hashes=True)
    graph = make(found, GRAPH)
    packed, record = graph.with_suffix(".data"), copy_records.load(copy_records.record_of(graph))
    content = bytearray(packed.read_bytes())
    content[len(content) // 2] ^= 1
    packed.write_bytes(content)
    described = replace(record[packed.name], modified=packed.stat().st_mtime_ns)
    copy_records.save(copy_records.record_of(graph), {**record, packed.name: described})
    assert replace(found, with_hashes=False).find(GRAPH) == graph
    assert packed.read_bytes() == content
    assert found.find(GRAPH) == graph
    assert packed.read_bytes() != content


def test_a_flipped_byte_in_the_weights_fails_the_graph_and_leaves_nothing(
    bundle: Path, tmp_path: Path
) -> None:
    weights = bundle / "fp32" / "weights.data"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(BundleError, match=r"weights\.data does not have its recorded sha256; bake it again"):
        graphs_of(bundle, tmp_path / "cache").open(["separation"])
    assert not list((tmp_path / "cache").rglob("*.onnx"))


@pytest.mark.parametrize("kind", ["below the floor", "no cache"])
def test_a_flipped_byte_is_found_where_no_copy_is_made(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    cache = tmp_path / "cache"
    if kind == "no cache":
        cache.write_text("")
    else:
        monkeypatch.setattr(copies, "MIN_WEIGHTS_BYTES", 1 << 40)
    graphs = graphs_of(bundle, cache)
    weights = bundle / "fp32" / "weights.data"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(BundleError, match=r"weights\.data does not have its recorded sha256; bake it again"):
        graphs.open(["separation"])


def test_each_file_is_hashed_once(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(copies, "MIN_WEIGHTS_BYTES", 1 << 40)
    monkeypatch.setattr(copies, "check_hashes", lambda folder, records: asked.extend(records))
    graphs_of(models / V3, tmp_path).open(["separation", "classification"])
    assert sorted(asked) == ["fp32/classification.onnx", GRAPH, "fp32/weights.data"]
    found = Graphs(
        models / V3,
        contract.load(models / V3),
        Precision.FP32,
        SETTINGS,
        copies_in(tmp_path, models / V3, with_hashes=True),
    )
    found.open(["separation"])
    assert len(asked) == 3


def test_a_copy_the_library_refuses_is_discarded_and_the_bundle_serves(
    models: Path, tmp_path: Path, lines: list[logging.LogRecord]
) -> None:
    found = copies_in(tmp_path, models / V3)
    graph = make(found, GRAPH)
    graph.write_bytes(b"no graph")
    record = copy_records.load(copy_records.record_of(graph))
    record = {**record, graph.name: copy_records.describe(graph)}
    copy_records.save(copy_records.record_of(graph), record)
    graphs_of(models / V3, tmp_path).open(["separation"])
    assert any("cannot be opened" in reason for reason in warnings_of(lines))
    assert found.find(GRAPH) == graph
    assert graph.read_bytes() != b"no graph"


@pytest.mark.parametrize("kind", ["a file in its place", "no room for a write"])
def test_a_cache_that_cannot_be_written_is_a_warning_and_the_bundle_serves(
    models: Path, tmp_path: Path, lines: list[logging.LogRecord], kind: str
) -> None:
    """Root may write anywhere: a read-only folder would be none. The live test mounts one where it can."""
    cache = tmp_path / "cache"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    if kind == "a file in its place":
        cache.write_text("")
    else:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        graphs = graphs_of(models / V3, cache)
        graphs.open(["separation"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert graphs.open_files() == {GRAPH}
    assert len(warnings_of(lines)) == 1
    assert not list(tmp_path.rglob("*.onnx"))


def test_a_bundle_that_is_a_link_of_another_name_has_copies(models: Path, tmp_path: Path) -> None:
    target = shutil.copytree(models / V3, tmp_path / "releases" / "v3-2")
    link = tmp_path / "models" / V3
    link.parent.mkdir()
    link.symlink_to(target)
    graphs = graphs_of(link, tmp_path / "cache")
    graphs.open(["separation"])
    copy = copies_in(tmp_path / "cache", link).folder / "fp32" / "weights.data"
    assert copy.samefile(target / "fp32" / "weights.data")


def test_too_little_room_is_said_before_anything_is_written(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: free)
    with pytest.raises(OSError, match="GB are needed for a while, 0.0 GB are free"):
        make(copies_in(tmp_path, models / V3), GRAPH)


def test_a_killed_maker_is_a_warning_and_the_next_one_cleans_up(
    models: Path, tmp_path: Path, lines: list[logging.LogRecord]
) -> None:
    found = copies_in(tmp_path, models / V3)
    staging = found.folder / prepacking.STAGING
    killed = threading.Thread(target=_kill_maker, args=[staging])
    killed.start()
    assert found.find(GRAPH) is None
    killed.join()
    assert warnings_of(lines) == ["the maker was killed, perhaps out of memory"]
    staging.mkdir()  # as a maker leaves it whose service was killed too
    (staging / "saved.data").write_bytes(b"half")
    assert found.find(GRAPH) == found.folder / GRAPH
    assert not staging.exists()


def _kill_maker(staging: Path) -> None:
    """Kill this process's maker as soon as it has begun."""
    deadline = time.monotonic() + START_SECONDS
    while not staging.exists():
        assert time.monotonic() < deadline, "no maker began"
        time.sleep(0.001)
    children = Path("/proc/self/task").glob("*/children")
    for pid in " ".join(path.read_text() for path in children).split():
        if prepacking.__name__.encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
            os.kill(int(pid), signal.SIGKILL)


def test_one_maker_at_a_time(models: Path, tmp_path: Path) -> None:
    """As many as come wait for the lock, and find the copy that was made meanwhile."""
    found = copies_in(tmp_path, models / V3)
    results: list[Path | None] = []
    threads = [threading.Thread(target=lambda: results.append(found.find(GRAPH))) for _ in range(4)]
    with (tmp_path / cache_lock.LOCK_FILE).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for thread in threads:
            thread.start()
        time.sleep(0.2)
        assert not found.folder.exists()
    for thread in threads:
        thread.join()
    assert results == [found.folder / GRAPH] * 4


def test_those_that_waited_for_a_failure_do_not_try_again(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: list[logging.LogRecord]
) -> None:
    tried: list[object] = []

    def fail(*arguments: object) -> tuple[int, str]:
        tried.append(arguments)
        return prepacking.NO_CACHE, "the disk is full"

    monkeypatch.setattr(copies, "_run_maker", fail)
    found = copies_in(tmp_path, models / V3)
    threads = [threading.Thread(target=found.find, args=[GRAPH]) for _ in range(3)]
    with (tmp_path / cache_lock.LOCK_FILE).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for thread in threads:
            thread.start()
        time.sleep(0.2)
    for thread in threads:
        thread.join()
    assert len(tried) == 1
    assert warnings_of(lines) == ["the disk is full; CACHE_DIR may name another folder"] * 3
    assert found.find(GRAPH) is None  # a later start tries
    assert len(tried) == 2


def test_a_maker_without_memory_is_not_started(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: list[logging.LogRecord]
) -> None:
    monkeypatch.setattr(host, "available_memory", lambda: copies.MAKER_BYTES)
    found = copies_in(tmp_path, models / V3)
    assert not found.can_share(GRAPH)
    assert found.find(GRAPH) is None
    assert warnings_of(lines) == ["making one takes 0.27 GB of memory, 0.27 GB are free"]


def test_what_can_be_shared_is_told_without_making_it(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = copies_in(tmp_path / "cache", models / V3)
    assert found.can_share(GRAPH)
    assert not found.cache_dir.exists()
    free = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: free)
    assert not found.can_share(GRAPH)
    monkeypatch.undo()
    monkeypatch.setattr(copies, "MIN_WEIGHTS_BYTES", 0)
    make(found, GRAPH)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: free)
    assert found.can_share(GRAPH)
    blocked = tmp_path / "blocked"
    blocked.write_text("")
    assert not copies_in(blocked, models / V3).can_share(GRAPH)


def test_a_lock_that_is_a_link_is_not_followed(
    models: Path, tmp_path: Path, lines: list[logging.LogRecord]
) -> None:
    other = tmp_path / "other"
    other.write_text("content")
    cache = tmp_path / "cache"
    cache.mkdir()
    (cache / cache_lock.LOCK_FILE).symlink_to(other)
    assert copies_in(cache, models / V3).find(GRAPH) is None
    assert other.read_text() == "content"
    assert "CACHE_DIR may name another folder" in warnings_of(lines)[0]


def test_a_bundle_removed_while_running_keeps_what_is_open(bundle: Path, tmp_path: Path) -> None:
    graphs = graphs_of(bundle, tmp_path / "cache")
    graphs.open(["separation"])
    (inputs, _) = inputs_of(bundle, GRAPH)
    before = graphs.session("separation").run(inputs, ["pooled"])[0]
    make(copies_in(tmp_path / "cache", bundle), "fp32/classification.onnx")
    shutil.rmtree(bundle)
    assert np.array_equal(graphs.session("separation").run(inputs, ["pooled"])[0], before)
    graphs.session("classification")  # its copy is whole, and of this bundle
    with pytest.raises(ModelUnavailable, match=r"was the bundle removed\?"):
        graphs.session("text-matching")


def check_not_mixed(bundle: Path, cache: Path) -> None:
    graphs = graphs_of(bundle, cache)
    graphs.open(["separation"])
    (bundle / MANIFEST_FILE).write_bytes((bundle / MANIFEST_FILE).read_bytes() + b"\n")
    with pytest.raises(ModelUnavailable, match="replaced while the service ran: restart the service"):
        graphs.session("text-matching")


def test_a_bundle_replaced_while_running_is_not_mixed_with_the_old_one(bundle: Path, tmp_path: Path) -> None:
    check_not_mixed(bundle, tmp_path / "cache")


def test_a_small_bundle_replaced_while_running_is_not_mixed_either(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    check_not_mixed(bundle, tmp_path / "cache")


def test_a_copy_that_vanished_does_not_lead_to_the_graph_of_another_bundle(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another service may have cleaned up between the look for a copy and its opening."""
    graphs = graphs_of(bundle, tmp_path / "cache")
    monkeypatch.setattr(Copies, "find", lambda self, file: tmp_path / "gone.onnx")
    (bundle / MANIFEST_FILE).write_bytes((bundle / MANIFEST_FILE).read_bytes() + b"\n")
    with pytest.raises(BundleError, match="replaced while the service ran: restart the service"):
        graphs.open(["separation"])


def test_a_maker_that_finds_another_bundle_says_so(bundle: Path, tmp_path: Path) -> None:
    found = copies_in(tmp_path / "cache", bundle)
    (bundle / MANIFEST_FILE).write_bytes((bundle / MANIFEST_FILE).read_bytes() + b"\n")
    with pytest.raises(BundleError, match="replaced while the service ran: restart the service"):
        make(found, GRAPH)


# --- what is removed --------------------------------------------------------------------------------------


def test_copies_of_other_times_of_the_same_bundle_are_removed(bundle: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    first = copies_in(cache, bundle)
    first.find(GRAPH)
    older = shutil.copytree(first.folder, cache / "1.0.0-none" / ("0" * 64))
    other = shutil.copytree(first.folder, cache / "1.0.0-mmx" / ("1" * 64))
    owner = json.loads((other / cleaning.OWNER_FILE).read_bytes())
    (other / cleaning.OWNER_FILE).write_text(json.dumps(owner | {"model": "another"}))
    (bundle / MANIFEST_FILE).write_bytes((bundle / MANIFEST_FILE).read_bytes() + b"\n")
    second = copies_in(cache, bundle)
    assert second.find(GRAPH) == second.folder / GRAPH
    assert not first.folder.exists()
    assert not older.parent.exists()
    assert other.exists()


def test_what_cannot_be_cleaned_is_a_warning_and_the_copy_is_made(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: list[logging.LogRecord]
) -> None:
    error = PermissionError(13, "Permission denied", "lost+found")
    monkeypatch.setattr(cleaning, "clean", lambda *arguments: iter([error]))
    found = copies_in(tmp_path, models / V3)
    assert found.find(GRAPH) == found.folder / GRAPH
    assert warnings_of(lines) == [str(error)]


def test_copies_of_a_bundle_of_equal_name_elsewhere_stay_while_it_is_there(
    bundle: Path, models: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    (bundle / MANIFEST_FILE).write_bytes((bundle / MANIFEST_FILE).read_bytes() + b"\n")
    elsewhere, here = copies_in(cache, bundle), copies_in(cache, models / V3)
    elsewhere.find(GRAPH)
    here.find(GRAPH)
    assert elsewhere.folder.exists()
    shutil.rmtree(bundle)
    here.find("fp32/classification.onnx")
    assert not elsewhere.folder.exists()


def test_tiny_weights_are_not_copied(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert copies_in(tmp_path, models / V3).find(GRAPH) is None
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("value", "is_understood"),
    [
        ("MatMul+1084|314688;12288;0", True),
        ("MatMul+1084|314688;12288;0|1;2;3", True),
        ("MatMul+1084|314688;12288;0;1;2;3;", True),
        ("MatMul+1084", False),
        ("MatMul+1084|314688;12288", False),
        ("MatMul+1084|a;b;c", False),
    ],
)
def test_only_known_spellings_of_packed_weights_are_moved(value: str, is_understood: bool) -> None:
    assert bool(BLOBS.fullmatch(value)) == is_understood
