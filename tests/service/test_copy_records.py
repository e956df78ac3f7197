"""Records of copies: what is written is read, and whatever is not as recorded is found."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from service import copy_records


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    """A graph's copy of two files, recorded; the second is a bundle's too."""
    graph = tmp_path / "model.onnx"
    graph.write_bytes(b"graph")
    (tmp_path / "bundle.data").write_bytes(b"weights")
    os.link(tmp_path / "bundle.data", tmp_path / "weights.data")
    record = {path.name: copy_records.describe(path) for path in (graph, tmp_path / "weights.data")}
    copy_records.save(copy_records.record_of(graph), record)
    assert copy_records.load(copy_records.record_of(graph)) == record
    return graph


def test_a_copy_is_whole_as_it_was_recorded(graph: Path) -> None:
    assert copy_records.is_whole(graph, with_hashes=True)
    assert copy_records.own_bytes(graph) == len(b"graph")


@pytest.mark.parametrize(
    "content", [b"", b"[]", b'{"model.onnx": 3}', b'{"model.onnx": {"size": 5}}', b"\xff"]
)
def test_an_unreadable_record_says_that_there_is_nothing(graph: Path, content: bytes) -> None:
    copy_records.record_of(graph).write_bytes(content)
    assert not copy_records.is_whole(graph, with_hashes=False)


def test_a_file_that_is_gone_or_shorter_is_found(graph: Path) -> None:
    os.truncate(graph.with_name("weights.data"), 3)
    assert not copy_records.is_whole(graph, with_hashes=False)
    graph.with_name("weights.data").unlink()
    assert not copy_records.is_whole(graph, with_hashes=False)


def test_weights_written_over_in_the_bundle_are_found_by_their_time(graph: Path) -> None:
    graph.with_name("bundle.data").write_bytes(b"Weights")
    os.utime(graph.with_name("bundle.data"), ns=(0, 0))
    assert not copy_records.is_whole(graph, with_hashes=False)


def test_another_content_of_equal_size_and_time_is_found_by_its_hash(graph: Path) -> None:
    record = copy_records.load(copy_records.record_of(graph))
    false = {**record, graph.name: replace(record[graph.name], sha256="0" * 64)}
    copy_records.save(copy_records.record_of(graph), false)
    assert copy_records.is_whole(graph, with_hashes=False)
    assert not copy_records.is_whole(graph, with_hashes=True)
