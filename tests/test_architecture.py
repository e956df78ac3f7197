"""The rules of structure: who imports whom, and how long things may be."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PROJECT = Path(__file__).parent.parent
MODULES = sorted((*(PROJECT / "service").glob("*.py"), *(PROJECT / "convert").glob("*.py")))
MAX_MODULE_LINES, MAX_FUNCTION_LINES, MAX_PARAMETERS = 250, 40, 6
FORBIDDEN_IN_SERVICE = {"torch", "transformers", "onnx", "optimum", "convert", "safetensors", "tqdm"}

# Each module may import modules of earlier rows; of its own row only where the row says so by being a chain.
SERVICE_LAYERS: list[set[str]] = [
    {"errors", "commands"},
    {"figures", "files", "limits", "vision", "addresses", "wire", "connections"}
    | {"compression", "keys", "rates", "unquoted", "observing"},
    {"metric_files"},
    {"manifest", "host", "images", "windows", "fetching", "copy_records", "compacting", "tickets"},
    {"devices"},
    {"config", "placement", "providers"},
    {"logs", "selection", "footprint", "bundles", "bodies", "options", "parsing", "probe"},
    {"tokenization", "chunking", "batching", "session", "pooling", "encoding"},
    {"prepacking"},
    {"cleaning", "cache_lock"},
    {"copies"},
    {"jobs", "lanes", "late_chunking", "graphs", "multimodal", "media", "admission", "estimates"},
    {"shares", "turns"},
    {"scheduler", "door"},
    {"inference", "image_embedding", "inputs"},
    {"scoring", "forms"},
    {"pairs", "yes_no", "listwise"},
    {"embedding", "reranking"},
    {"loading", "multi_vector", "requests"},
    {"status", "token_counts"},
    {"registry", "schema", "answers", "examples", "fitting"},
    {"operations"},
    {"openapi"},
    {"surface"},
    {"resources", "middleware", "access", "finishing", "metrics", "token_resources", "pages"},
    {"app"},
    {"wsgi"},
    {"listening", "joining", "lingering", "receiving", "broken", "server_log"},
    {"worker", "handover"},  # around the application: they know nothing of it
    {"gunicorn_conf", "serve"},
]
CONVERT_LAYERS: list[set[str]] = [
    {"recipe", "graph", "progress", "torch_pickle", "quality", "vocabulary", "rounding", "vision_config"}
    | {"calibrated", "texts"},
    {"encoder_recipes", "decoder_recipes", "multimodal_recipes"},
    {"catalog"},
    {"weights", "torch_file", "pixels", "four_bits"},
    {"checkpoint", "prenorm"},
    {"lora", "source", "module_list"},
    {"sentence_files"},
    {"tokenizer_files"},
    {"rotary"},
    {"encoder_config", "decoder_config", "exported_config"},
    {"configs"},
    {"custom"},
    {"encoder"},
    {"decoder", "vision"},
    {"heads", "decoder_heads", "rewriting"},
    {"int8", "blocks", "smoothing", "calibration", "half"},
    {"int4"},
    {"quantize", "mixture"},
    {"multimodal"},
    {"build", "describe", "bundle", "running", "emulation", "pictures"},
    {"reference", "tuning", "plot", "parity"},
    {"padding"},
    {"verify"},
    {"bake"},
    {"exported_graph", "torch_answers"},
    {"exporting"},
    {"any_model", "listing", "arguments"},
    {"kept"},
    {"__main__"},
]
CONTRACT = {"manifest", "figures", "files", "limits", "vision", "errors", "commands"}
# What runs baked graphs with the service's own code, to measure them.
RUNS_BUNDLES = {
    "running": {"embedding", "reranking", "graphs", "host", "inference", "options", "scheduler", "session"},
    "reference": {"options"},
    "pictures": {"embedding", "images", "options"},  # decoded and resized as those of requests
    "verify": {"host", "embedding"},
    "calibration": {"session"},
    "tuning": {"session"},
}
GUNICORN_CLASSES = {
    "ThreadWorker",
    "Logger",
}  # taken by name from its configuration: only a subclass is another
# The one owner of each third-party package in the service.
OWNERS = {
    "onnxruntime": {"session", "providers"},
    "tokenizers": {"tokenization"},
    "sentencex": {"chunking"},
    "falcon": {"app", "resources", "middleware", "bodies", "door", "access", "finishing"}
    | {"token_resources", "surface", "pages"},
    "gunicorn": {"worker", "server_log", "serve"},
    "orjson": {"app", "logs", "parsing"},
    "msgspec": {"manifest", "parsing", "forms", "requests", "inputs", "answers", "openapi"},
    "PIL": {"images"},
    "httpcore2": {"fetching"},
    "prometheus_client": {"metrics", "metric_files"},
}


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imported(path: Path) -> set[str]:
    """Return every imported module as a dotted name; `from service import host` counts as service.host."""
    names: set[str] = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            is_package = node.module in ("service", "convert")
            names |= {f"{node.module}.{alias.name}" if is_package else node.module for alias in node.names}
    return names


def own_imports(path: Path, package: str) -> set[str]:
    return {name.split(".")[1] for name in imported(path) if name.startswith(f"{package}.")}


@pytest.mark.parametrize(
    ("package", "layers"),
    [("service", SERVICE_LAYERS), ("convert", CONVERT_LAYERS)],
    ids=["service", "convert"],
)
def test_every_module_has_a_layer(package: str, layers: list[set[str]]) -> None:
    modules = {path.stem for path in (PROJECT / package).glob("*.py")} - {"__init__"}
    assert modules == set().union(*layers)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: f"{path.parent.name}.{path.stem}")
def test_imports_point_downwards(path: Path) -> None:
    layers = SERVICE_LAYERS if path.parent.name == "service" else CONVERT_LAYERS
    below: set[str] = set()
    for layer in layers:
        if path.stem in layer:
            break
        below |= layer
    assert own_imports(path, path.parent.name) <= below


@pytest.mark.parametrize("path", sorted((PROJECT / "service").glob("*.py")), ids=lambda path: path.stem)
def test_service_imports_nothing_of_the_converter(path: Path) -> None:
    assert not {name.split(".")[0] for name in imported(path)} & FORBIDDEN_IN_SERVICE


@pytest.mark.parametrize("path", sorted((PROJECT / "convert").glob("*.py")), ids=lambda path: path.stem)
def test_converter_takes_only_the_contract_from_the_service(path: Path) -> None:
    allowed = CONTRACT | RUNS_BUNDLES.get(path.stem, set())
    assert own_imports(path, "service") <= allowed


@pytest.mark.parametrize("package", OWNERS)
def test_third_party_packages_have_one_owner(package: str) -> None:
    users = {
        path.stem
        for path in (PROJECT / "service").glob("*.py")
        if package in {name.split(".")[0] for name in imported(path)}
    }
    assert users == OWNERS[package]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: f"{path.parent.name}.{path.stem}")
def test_sizes(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_MODULE_LINES
    assert ast.get_docstring(tree(path)), "a module says what it knows and what it does not"
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno < MAX_FUNCTION_LINES, node.name
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            assert len([name for name in arguments if name.arg != "self"]) <= MAX_PARAMETERS, node.name
        if isinstance(node, ast.ClassDef):
            own_parents = [
                base.id for base in node.bases if isinstance(base, ast.Name) and "Error" not in base.id
            ]
            allowed = {"StrEnum", "Enum", "Protocol", "Exception", "InvalidRequest"}
            allowed |= GUNICORN_CLASSES if path.stem in OWNERS["gunicorn"] else set()
            assert set(own_parents) <= allowed, f"{node.name} inherits"
