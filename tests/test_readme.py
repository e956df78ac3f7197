"""The curl examples of the API's page, lists of settings, targets and benches; all commands: test_docs.py."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from service import config
from tests import qwen_vl, xlmr
from tests.bench.options import Part
from tests.conftest import MODEL, Live
from tests.processes import PROJECT

API, SETTINGS, DEVELOPMENT = (
    (PROJECT / "docs" / name).read_text(encoding="utf-8")
    for name in ("api.md", "settings.md", "development.md")
)
BLOCKS = re.findall(r"```sh\n(.*?)```", API, re.DOTALL)


def test_the_curl_examples_answer(
    real_models: Path, tmp_path: Path, serve: Callable[..., AbstractContextManager[Live]]
) -> None:
    models = Path(shutil.copytree(real_models, tmp_path / "models"))
    xlmr.bake_tiny(models, xlmr.V3, xlmr.write_jina_v3(tmp_path / "v3"))
    xlmr.bake_tiny(models, qwen_vl.JINA_V4, qwen_vl.write_jina_v4(tmp_path / "v4"), ("retrieval",))
    xlmr.bake_tiny(models, xlmr.BGE_M3, xlmr.write_bge_m3(tmp_path / "m3"))
    xlmr.bake_tiny(models, xlmr.BGE_RERANKER, xlmr.write_bge_reranker(tmp_path / "reranker"))
    commands = [block for block in BLOCKS if "-d '" in block]
    with serve(models) as live:
        answers = [json.loads(run(command, live)) for command in commands]
    plain, query, image, late, per_token, ranked, tokens = answers
    assert plain["model"] == MODEL
    assert [len(item["embedding"]) for item in plain["data"]] == [384, 384]
    assert (query["model"], len(query["data"])) == (xlmr.V3, 1)
    assert [(item["tokens"], len(item["ids"])) for item in tokens["data"]] == [(6, 6)]
    assert [len(item["embedding"]) for item in image["data"]] == [qwen_vl.SIZES.text.hidden] * 2
    assert len(late["data"]) == 2
    (vectors,) = (item["embeddings"] for item in per_token["data"])
    assert len(vectors) == per_token["usage"]["total_tokens"] - 1
    assert [len(ranked["results"]), ranked["results"][0].keys()] == [
        1, {"index", "relevance_score", "document"},
    ]  # fmt: skip


def run(command: str, live: Live) -> bytes:
    words = shlex.split(command.replace("http://localhost:8080", live.url).replace("\\\n", " "))
    return subprocess.run([*words, "--silent"], check=True, capture_output=True).stdout


def test_every_setting_is_in_the_table() -> None:
    rows = re.findall(r"^\| (`[^|]+) \|", SETTINGS, re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"`([A-Z_]+)`", row)}
    assert named == set(config.VARIABLES)


def test_every_target_and_bench_is_in_the_tables() -> None:
    targets, parts = DEVELOPMENT.split("## Benches")
    makefile = (PROJECT / "Makefile").read_text(encoding="utf-8")
    (listed,) = re.findall(r"^\.PHONY: (.+)$", makefile, re.MULTILINE)
    assert {*re.findall(r"`make ([a-z-]+)`", targets)} == {*listed.split()}
    rows = re.findall(r"^\| (`[^|]+) \|", parts, re.MULTILINE)
    assert {name for row in rows for name in re.findall(r"`([a-z0-9-]+)`", row)} == {*Part}
