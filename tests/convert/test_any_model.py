"""Models outside the catalog: what their own files say, and what is refused. No torch here."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
from falcon.testing import TestClient
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer, normalizers

from convert import any_model, bundle, encoder, exporting, parity, running, vocabulary
from convert.__main__ import main
from convert.bake import BakeRequest, bake
from convert.catalog import RECIPES
from convert.graph import INPUT_IDS, Graph
from convert.parity import Expected
from convert.source import locate, locate_given
from service import manifest as contract
from service.app import make_app
from service.config import Settings
from service.errors import BakeError
from service.manifest import Kind, Manifest, Output, Pooling, Precision
from service.registry import Registry
from service.scheduler import Scheduler
from service.session import Session
from tests import checkpoints, xlmr
from tests.conftest import MODEL

NAME = "some-model"
PACKAGE = "sentence_transformers.models"
TEXTS = ["a river", "Bread is baked, slowly.", "x"]
POOLINGS = {"pooling_mode_mean_tokens": Pooling.MEAN, "pooling_mode_cls_token": Pooling.CLS,
            "pooling_mode_lasttoken": Pooling.LAST}  # fmt: skip
TANH = "torch.nn.modules.activation.Tanh"
SETTINGS = "config_sentence_transformers.json"
PROMPTS = {"query": "find: ", "document": "", "other": "a text: "}

Edit = Callable[[Path], None]


def write_json(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def changed(file: str, **values: Any) -> Edit:
    """Return what puts values into a JSON object of a checkpoint."""

    def edit(folder: Path) -> None:
        path = folder / file
        content = json.loads(path.read_text()) if path.is_file() else {}
        write_json(path, {**content, **values})

    return edit


def modules(*kinds: str, package: str = PACKAGE) -> Edit:
    entries = [
        {"idx": number, "path": f"{number}_{kind}" if number else "", "type": f"{package}.{kind}"}
        for number, kind in enumerate(kinds)
    ]
    return lambda folder: write_json(folder / "modules.json", entries)


def removed(*names: str) -> Edit:
    def edit(folder: Path) -> None:
        for name in names:
            path = folder / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    return edit


def dense(folder: str = "2_Dense", **values: Any) -> Edit:
    """Return what adds a dense module, the third, drawn at random."""

    def edit(source: Path) -> None:
        modules("Transformer", "Pooling", "Dense", "Normalize")(source)
        entries = json.loads((source / "modules.json").read_text())
        entries[2]["path"] = folder
        write_json(source / "modules.json", entries)
        draw = np.random.default_rng(0)
        weight, bias = draw.normal(size=(24, checkpoints.HIDDEN)), draw.normal(size=24)
        known = {"in_features": checkpoints.HIDDEN, "out_features": 24, "activation_function": TANH}
        write_json(source / folder / "config.json", {**known, **values})
        tensors = {"linear.weight": weight.astype(np.float32), "linear.bias": bias.astype(np.float32)}
        save_file(tensors, source / folder / "model.safetensors")

    return edit


def pooled(**flags: bool) -> Edit:
    return changed("1_Pooling/config.json", word_embedding_dimension=checkpoints.HIDDEN, **flags)


def nested(folder: Path) -> None:
    """Put the model into a folder of its own, as old versions did, which left a config of theirs outside."""
    inner = folder / "0_Transformer"
    inner.mkdir()
    for path in folder.glob("*"):
        if path.is_file() and path.name != "modules.json":
            path.rename(inner / path.name)
    listed = json.loads((folder / "modules.json").read_text())
    listed[0]["path"] = inner.name
    write_json(folder / "modules.json", listed)
    write_json(folder / "config.json", {"__version__": "1.0.0"})


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A tiny BERT in the layout of sentence-transformers, pooled by mean."""
    folder = checkpoints.write_bert(tmp_path / NAME)
    modules("Transformer", "Pooling", "Normalize")(folder)
    pooled(pooling_mode_mean_tokens=True, pooling_mode_cls_token=False)(folder)
    return folder


def baked(source: Path, *options: str) -> tuple[Path, Manifest]:
    """Bake by the command, in fp32 and unmeasured; return the bundle."""
    out = source.parent / "models"
    words = ["--source", str(source), "--out", str(out), "--precision", "fp32", "--verify", "skip", "--force"]
    assert main([*words, *options]) == 0
    (folder,) = out.glob("[!.]*")
    return folder, contract.load(folder)


def vectors(folder: Path, manifest: Manifest, texts: list[str] = TEXTS) -> np.ndarray:
    (variant,) = manifest.variants
    return running.answers(running.open_variant(folder, manifest, variant), variant, texts)


@pytest.fixture(scope="module")
def states(tiny_models: Path) -> list[np.ndarray]:
    """The token states of the texts, (tokens, hidden), from a bundle that gives them."""
    folder = tiny_models / MODEL
    manifest = contract.load(folder)
    variant = next(each for each in manifest.variants if each.precision == Precision.FP32)
    model = running.open_variant(folder, manifest, variant)
    ids = [model.tokenizer.locate(text).ids.tolist() for text in TEXTS]
    return [running.token_states(model, variant, each, [1] * len(each)) for each in ids]


def unit(rows: list[np.ndarray]) -> np.ndarray:
    return np.stack([row / np.linalg.norm(row) for row in rows])


@pytest.mark.parametrize("flag", POOLINGS)
def test_pooling_is_the_checkpoints_own(source: Path, states: list[np.ndarray], flag: str) -> None:
    pooled(**{name: name == flag for name in POOLINGS})(source)
    folder, manifest = baked(source)
    assert manifest.pooling == POOLINGS[flag]
    expected = {
        Pooling.MEAN: [state.mean(0) for state in states],
        Pooling.CLS: [state[0] for state in states],
        Pooling.LAST: [state[-1] for state in states],
    }[manifest.pooling]
    np.testing.assert_allclose(vectors(folder, manifest), unit(expected), atol=1e-6)


def test_rows_of_a_batch_are_pooled_at_their_own_last_token(source: Path) -> None:
    pooled(pooling_mode_mean_tokens=False, pooling_mode_lasttoken=True)(source)
    folder, manifest = baked(source)
    client = client_of(folder.parent)
    together = embedded(client, manifest.name, TEXTS)
    np.testing.assert_allclose(together, vectors(folder, manifest), atol=1e-6)


def test_pooling_as_newer_versions_spell_it(source: Path) -> None:
    write_json(source / "1_Pooling" / "config.json", {"pooling_mode": "cls"})
    assert baked(source)[1].pooling == Pooling.CLS


@pytest.mark.parametrize(
    "config",
    [{}, {"pooling_mode_mean_tokens": False, "pooling_mode_cls_token": False},
     {"pooling_mode": "mean", "pooling_mode_cls_token": True}, {"pooling_mode": ["mean"]},
     {"pooling_mode_mean_sqrt_len_tokens": True}],
    ids=["nothing", "all-off", "newer-word-first", "list", "square-root"],
)  # fmt: skip
def test_what_comes_to_the_mean(source: Path, states: list[np.ndarray], config: dict[str, Any]) -> None:
    write_json(source / "1_Pooling" / "config.json", {"word_embedding_dimension": 32, **config})
    folder, manifest = baked(source)
    expected = unit([state.mean(0) for state in states])
    np.testing.assert_allclose(vectors(folder, manifest), expected, atol=1e-6)


def test_a_folder_that_no_module_names_is_not_read(source: Path) -> None:
    (source / "1_Pooling").rename(source / "pool")
    entries = json.loads((source / "modules.json").read_text())
    entries[1]["path"] = "pool"
    write_json(source / "modules.json", entries)
    pooled(pooling_mode_cls_token=True)(source)
    assert baked(source)[1].pooling == Pooling.MEAN


def test_a_class_with_a_classifier_makes_vectors_where_its_modules_pool(
    source: Path, states: list[np.ndarray]
) -> None:
    changed("config.json", architectures=["BertForSequenceClassification"])(source)
    folder, manifest = baked(source)
    assert manifest.kind == Kind.EMBEDDING
    expected = unit([state.mean(0) for state in states])
    np.testing.assert_allclose(vectors(folder, manifest), expected, atol=1e-6)


@pytest.mark.parametrize(("causal", "pooling"), [({}, Pooling.LAST), ({"is_causal": False}, Pooling.MEAN)])
def test_without_modules_a_language_model_is_pooled_by_its_last_token(
    source: Path, causal: dict[str, bool], pooling: Pooling
) -> None:
    removed("modules.json", "1_Pooling")(source)
    changed("config.json", architectures=["BertForCausalLM"], **causal)(source)
    assert baked(source)[1].pooling == pooling


def test_without_modules_no_file_of_sentence_transformers_is_read(source: Path) -> None:
    removed("modules.json", "1_Pooling")(source)
    changed("sentence_bert_config.json", max_seq_length=20, do_lower_case=True)(source)
    changed(SETTINGS, prompts=PROMPTS, default_prompt_name="query", truncate_dim=8)(source)
    recipe, _, _ = any_model.prepared(str(source), NAME, offline=True)
    manifest = baked(source)[1]
    assert (manifest.max_tokens, manifest.tasks, recipe.lowercases) == (checkpoints.POSITIONS, (), False)
    assert manifest.default_dimensions == checkpoints.HIDDEN


def test_without_modules_it_is_the_mean_and_says_so(
    source: Path, capsys: pytest.CaptureFixture[str], states: list[np.ndarray]
) -> None:
    (source / "modules.json").unlink()
    shutil.rmtree(source / "1_Pooling")
    folder, manifest = baked(source)
    assert "no modules.json: pooled by mean" in capsys.readouterr().out
    expected = unit([state.mean(0) for state in states])
    np.testing.assert_allclose(vectors(folder, manifest), expected, atol=1e-6)


@pytest.mark.parametrize("activation", ["Tanh", "Identity"])
@pytest.mark.parametrize("place", ["2_Dense", "sub/2_Dense"])
@pytest.mark.parametrize("is_nested", [False, True])
def test_a_dense_module(
    source: Path, states: list[np.ndarray], activation: str, place: str, is_nested: bool
) -> None:
    dense(place, activation_function=f"torch.nn.modules.any.{activation}")(source)
    if is_nested:
        nested(source)
    folder, manifest = baked(source)
    assert (manifest.dimensions, manifest.outputs) == (24, (Output.POOLED,))
    function = np.tanh if activation == "Tanh" else np.asarray
    layer = load_file(source / place / "model.safetensors")
    weight, bias = layer["linear.weight"], layer["linear.bias"]
    expected = unit([function(weight @ state.mean(0) + bias) for state in states])
    np.testing.assert_allclose(vectors(folder, manifest), expected, atol=1e-6)
    above = "../" if is_nested else ""
    assert set(manifest.source.sha256) == {"model.safetensors", f"{above}{place}/model.safetensors"}


def test_a_transformer_in_a_folder_of_its_own(source: Path, states: list[np.ndarray]) -> None:
    nested(source)
    folder, manifest = baked(source)
    expected = unit([state.mean(0) for state in states])
    np.testing.assert_allclose(vectors(folder, manifest), expected, atol=1e-6)


# --- from the hub -----------------------------------------------------------------------------------------

ON_THE_HUB = {  # of a repository, and whether a bake may read it
    "modules.json": True, "README.md": True, "config.json": True,
    "0_Transformer/config.json": True, "0_Transformer/pytorch_model.bin": True,
    "0_Transformer/model-00001-of-00002.safetensors": True, "0_Transformer/vocab.txt": True,
    "0_Transformer/merges.txt": True, "0_Transformer/sentencepiece.bpe.model": True,
    "1_Pooling/config.json": True, "2_Dense/pytorch_model.bin": True, "sub/2_Dense/model.safetensors": True,
    "pytorch_model-00001-of-00002.bin": True, "vocab.txt": True, "merges.txt": True, "spiece.model": True,
    "optimizer.pt": False, "training/rng_state.pt": False, "training_args.bin": False,
    "modeling_own.py": False, "onnx/model.onnx": False, "tf_model.h5": False,
}  # fmt: skip
HEADS = {"sparse_linear.pt", "colbert_linear.pt"}


@pytest.fixture
def fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The files that are fetched of a repository, which has all of them."""
    found: set[str] = set()

    def fetch(repository: str, *, allow_patterns: list[str], **options: object) -> str:
        names = [*ON_THE_HUB, *HEADS]
        found.update(name for name in names if any(fnmatch(name, pattern) for pattern in allow_patterns))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    return found


def test_of_a_repository_what_a_bake_may_read_is_fetched(fetched: set[str]) -> None:
    locate_given("someone/some-model", offline=False)
    assert fetched == {name for name, is_read in ON_THE_HUB.items() if is_read}


@pytest.mark.parametrize("given", [None, "someone/their-own"])
@pytest.mark.parametrize(("name", "heads"), [("bge-m3", HEADS), ("bge-reranker-v2-m3", set())])
def test_of_a_model_of_the_catalog_its_heads_are_fetched(
    fetched: set[str], name: str, heads: set[str], given: str | None
) -> None:
    locate(RECIPES[name], given, offline=False)
    assert {path for path in fetched if path.endswith(".pt")} == heads


# --- what a bundle says -----------------------------------------------------------------------------------


def test_the_manifest_says_what_is_known(source: Path) -> None:
    (source / "README.md").write_text("---\nlanguage: en\nlicense: apache-2.0\n---\nlicense: none\n")
    manifest = baked(source, "--name", "other-name")[1]
    assert (manifest.name, manifest.kind, manifest.source.id) == ("other-name", Kind.EMBEDDING, NAME)
    assert (manifest.licence, manifest.owned_by) == ("apache-2.0", "unknown")
    assert (manifest.dimensions, manifest.max_tokens) == (checkpoints.HIDDEN, checkpoints.MAX_TOKENS)


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        (None, "unknown"),
        ("# A model\nlicense: mit\n", "unknown"),
        ("---\nlicense: other\nlicense_name: some-terms\n---\n", "some-terms"),
        ("---\nlicense: 'mit'\n---\n", "mit"),
    ],
)
def test_the_licence_is_that_of_the_card(source: Path, card: str | None, licence: str) -> None:
    if card:
        (source / "README.md").write_text(card)
    assert baked(source)[1].licence == licence


@pytest.mark.parametrize(
    ("sentence", "tokenizer", "limit"),
    [(20, 30, 20), (None, 30, 30), (None, 1e30, checkpoints.POSITIONS), (500, 30, checkpoints.POSITIONS)],
)
def test_the_limit_is_that_of_sentence_transformers(
    source: Path, sentence: int | None, tokenizer: float, limit: int
) -> None:
    changed("sentence_bert_config.json", max_seq_length=sentence)(source)
    changed("tokenizer_config.json", model_max_length=tokenizer)(source)
    assert baked(source)[1].max_tokens == limit


@pytest.mark.parametrize("kind", ["roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet"])
def test_the_limit_is_in_a_file_of_another_transformer(source: Path, kind: str) -> None:
    removed("sentence_bert_config.json")(source)
    changed(f"sentence_{kind}_config.json", max_seq_length=20, do_lower_case=True)(source)
    recipe, _, _ = any_model.prepared(str(source), NAME, offline=True)
    assert (recipe.manifest.max_tokens, recipe.lowercases) == (20, True)
    assert baked(source)[1].max_tokens == 20


@pytest.mark.parametrize(("first", "limit"), [({"max_seq_length": 30}, 30), ({}, 20), ({"a": 1}, 40)])
def test_of_these_files_the_first_that_holds_anything_is_read(
    source: Path, first: dict[str, int], limit: int
) -> None:
    write_json(source / "sentence_bert_config.json", first)
    changed("sentence_roberta_config.json", max_seq_length=20)(source)
    changed("sentence_xlnet_config.json", max_seq_length=10)(source)
    changed("tokenizer_config.json", model_max_length=40)(source)
    assert baked(source)[1].max_tokens == limit


def test_vectors_are_cut_as_the_checkpoint_says(source: Path) -> None:
    whole = embedded(client_of(baked(source)[0].parent), NAME, TEXTS)
    changed(SETTINGS, truncate_dim=8)(source)
    folder, manifest = baked(source)
    assert (manifest.dimensions, manifest.default_dimensions) == (checkpoints.HIDDEN, 8)
    found = embedded(client_of(folder.parent), NAME, TEXTS)
    np.testing.assert_allclose(found, unit(list(whole[:, :8])), atol=1e-6)


def test_what_torch_computed_is_cut_too(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changed("config.json", model_type="distilbert")(source)
    changed(SETTINGS, truncate_dim=2)(source)
    whole = Expected(np.array([[3.0, 4.0, 12.0]], dtype=np.float32))
    monkeypatch.setattr(exporting, "check_installed", lambda reason: None)
    monkeypatch.setattr(exporting, "export", lambda recipe, ready: replace(ready, expected=whole))
    ready = any_model.prepared(str(source), NAME, offline=True)[1]
    assert ready.expected
    np.testing.assert_allclose(ready.expected.answers, [[0.6, 0.8]], atol=1e-7)


def test_verify_knows_such_a_bundle(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, _ = baked(source)
    assert main(["verify", NAME, "--out", str(folder.parent)]) == 0
    assert f"{NAME} fp32: verified" in capsys.readouterr().out


def test_a_bundle_that_is_there_is_kept(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, _ = baked(source)
    assert main(["--source", str(source), "--out", str(folder.parent)]) == 0
    assert "is there already" in capsys.readouterr().out


def other(source: Path, edit: Edit) -> Path:
    """Copy a checkpoint to a folder of the same name, whose owner is another, and change it."""
    folder = shutil.copytree(source, source.parent / "owner" / source.name)
    edit(folder)
    return folder


def redrawn(file: str) -> Edit:
    """Return what changes one number of a file of weights."""

    def edit(folder: Path) -> None:
        tensors = load_file(folder / file)
        next(iter(tensors.values())).flat[0] += 1
        save_file(tensors, folder / file)

    return edit


def test_the_same_checkpoint_in_another_folder_is_kept(
    source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dense()(source)
    nested(source)
    folder, _ = baked(source)
    copied = other(source, lambda folder: None).rename(source.parent / "renamed")
    assert main(["--source", str(copied), "--name", NAME, "--out", str(folder.parent)]) == 0
    assert "is there already" in capsys.readouterr().out


@pytest.mark.parametrize("file", ["0_Transformer/model.safetensors", "2_Dense/model.safetensors"])
def test_another_checkpoint_under_the_name_of_one_that_is_there_is_refused(
    source: Path, capsys: pytest.CaptureFixture[str], file: str
) -> None:
    dense()(source)
    nested(source)
    folder, manifest = baked(source)
    command = ["--source", str(other(source, redrawn(file))), "--out", str(folder.parent)]
    capsys.readouterr()
    assert main(command) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert f"baked from {NAME} and not from {source.parent / 'owner'}" in line
    assert "--name NAME" in line and "--force" in line
    assert contract.load(folder) == manifest
    assert main([*command, "--name", "another", "--precision", "fp32", "--verify", "skip"]) == 0
    assert main([*command, "--force", "--precision", "fp32", "--verify", "skip"]) == 0
    assert contract.load(folder).source.sha256 != manifest.source.sha256


@pytest.mark.parametrize(
    ("given", "status"),
    [("someone/some-model@v1", 0), ("someone/some-model", 1), ("someone/some-model@v2", 1),
     ("else/some-model@v1", 1)],
)  # fmt: skip
def test_a_repository_is_compared_by_its_name_and_revision(
    source: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], given: str, status: int
) -> None:
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *names, **options: str(source))
    out = ["--out", str(source.parent / "models")]
    fast = ["--precision", "fp32", "--verify", "skip"]
    assert main(["--source", "someone/some-model@v1", *out, *fast]) == 0
    assert main(["--source", str(source), *out]) == 0  # the same weights
    capsys.readouterr()
    assert main(["--source", given, *out]) == status
    printed = capsys.readouterr()
    if status:
        assert f"baked from someone/some-model@v1 and not from {given}:" in printed.err
    else:
        assert "is there already" in printed.out


def test_a_model_of_the_catalog_from_another_source_is_refused(
    source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [MODEL, "--out", str(source.parent / "models"), "--precision", "fp32", "--verify", "skip"]
    assert main([*command, "--source", str(source)]) == 0
    assert main([*command, "--source", str(source)]) == 0
    copied = other(source, redrawn("model.safetensors"))
    assert main([*command, "--source", str(copied)]) == 1
    assert f"baked from {NAME} and not from {copied}" in capsys.readouterr().err
    assert main(command) == 0  # whatever it was baked from


# --- prompts ----------------------------------------------------------------------------------------------


def client_of(models: Path) -> TestClient:
    settings = Settings(models_dir=models)
    registry = Registry(settings, Scheduler(settings.max_batch_tokens))
    registry.load()
    assert not registry.failed()
    return TestClient(make_app(settings, registry))


def embedded(client: TestClient, name: str, texts: list[str], **fields: str) -> np.ndarray:
    answer = client.simulate_post("/v1/embeddings", json={"model": name, "input": texts, **fields})
    assert answer.status_code == 200, answer.text
    return np.array([item["embedding"] for item in answer.json["data"]])


@pytest.fixture
def prompted(source: Path) -> TestClient:
    """A client of a model with prompts."""
    changed("config_sentence_transformers.json", prompts=PROMPTS, default_prompt_name=None)(source)
    return client_of(baked(source)[0].parent)


@pytest.mark.parametrize("field", ["task", "prompt_name"])
@pytest.mark.parametrize("prompt", PROMPTS)
def test_prompts_are_tasks(prompted: TestClient, field: str, prompt: str) -> None:
    expected = embedded(prompted, NAME, [PROMPTS[prompt] + text for text in TEXTS])
    found = embedded(prompted, NAME, TEXTS, **{field: prompt})
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"prompt_name": "passage"}, "prompt_name", "invalid_prompt_name"),
        ({"prompt_name": "query", "task": "other"}, "prompt_name", "conflicting_fields"),
        ({"task": "passage"}, "task", "unknown_task"),
    ],
)
def test_other_prompts_are_refused(
    prompted: TestClient, fields: dict[str, str], param: str, code: str
) -> None:
    answer = prompted.simulate_post("/v1/embeddings", json={"model": NAME, "input": "a", **fields})
    assert answer.status_code == 422
    assert (answer.json["error"]["param"], answer.json["error"]["code"]) == (param, code)


def test_the_default_prompt_is_the_default_task(source: Path) -> None:
    name = "config_sentence_transformers.json"
    changed(name, prompts=PROMPTS, default_prompt_name="other")(source)
    client = client_of(baked(source)[0].parent)
    np.testing.assert_array_equal(embedded(client, NAME, TEXTS), embedded(client, NAME, TEXTS, task="other"))


def test_a_default_prompt_that_every_model_has_is_empty(source: Path) -> None:
    changed(SETTINGS, prompts={"other": "a text: "}, default_prompt_name="query")(source)
    manifest = baked(source)[1]
    assert ([task.name for task in manifest.tasks], manifest.default_task) == (["other"], None)


def test_empty_prompts_are_no_tasks(source: Path) -> None:
    changed("config_sentence_transformers.json", prompts={"query": "", "document": ""})(source)
    assert baked(source)[1].tasks == ()


# --- tokenizers -------------------------------------------------------------------------------------------


def test_texts_are_made_lower_case_where_the_checkpoint_says_so(source: Path) -> None:
    tokenizer = checkpoints.wordpiece_tokenizer()
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False)
    tokenizer.save(str(source / "tokenizer.json"))
    changed("sentence_bert_config.json", do_lower_case=True)(source)
    folder, _ = baked(source)
    made = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert made.encode("A River").ids == made.encode("a river").ids
    assert tokenizer.encode("A River").ids != tokenizer.encode("a river").ids


def test_a_list_of_words_is_made_a_tokenizer(source: Path) -> None:
    published = checkpoints.wordpiece_tokenizer()
    words = published.get_vocab()
    (source / "tokenizer.json").unlink()
    (source / "vocab.txt").write_text("\n".join(sorted(words, key=words.__getitem__)) + "\n")
    folder, _ = baked(source)
    made = Tokenizer.from_file(str(folder / "tokenizer.json"))
    for text in TEXTS:
        published.no_padding()
        published.no_truncation()
        assert made.encode(text).ids == published.encode(text).ids
    assert made.encode("a", "b").type_ids == [0, 0, 0, 1, 1]


def test_a_list_of_words_without_special_tokens_is_refused(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("a\nb\n")
    with pytest.raises(BakeError, match=r"no token \[PAD\], \[UNK\]"):
        vocabulary.of_word_pieces(tmp_path / "vocab.txt")


# --- cross-encoders ---------------------------------------------------------------------------------------


def test_roberta_and_its_classifier_are_those_of_the_catalog(tmp_path: Path) -> None:
    source = xlmr.write_bge_reranker(tmp_path / NAME)
    known = xlmr.bake_tiny(tmp_path / "known", xlmr.BGE_RERANKER, source)
    changed("config.json", model_type="roberta", architectures=["RobertaForSequenceClassification"])(source)
    folder, manifest = baked(source)
    assert (manifest.kind, manifest.outputs) == (Kind.RERANKER, (Output.SCORES,))
    expected = vectors(known, contract.load(known), TEXTS * 4)
    np.testing.assert_allclose(vectors(folder, manifest, TEXTS * 4), expected, atol=1e-7)


@pytest.fixture
def cross_encoder(source: Path) -> Path:
    """A tiny BERT with a pooler and one label."""
    draw = np.random.default_rng(1)
    size = checkpoints.HIDDEN
    head = {"pooler.dense.weight": (size, size), "pooler.dense.bias": (size,),
            "classifier.weight": (1, size), "classifier.bias": (1,)}  # fmt: skip
    tensors = {f"bert.{name}": value for name, value in load_file(source / "model.safetensors").items()}
    for name, shape in head.items():
        full = name if name.startswith("classifier") else f"bert.{name}"
        tensors[full] = (draw.normal(size=shape) * 0.3).astype(np.float32)
    save_file(tensors, source / "model.safetensors")
    (source / "modules.json").unlink()
    shutil.rmtree(source / "1_Pooling")
    changed("config.json", architectures=["BertForSequenceClassification"], id2label={"0": "LABEL_0"})(source)
    return source


def listed_cross_encoder(*kinds: str) -> Edit:
    """Return what adds the list of modules that newer versions write beside a cross-encoder."""

    def edit(folder: Path) -> None:
        modules(*kinds)(folder)
        changed(SETTINGS, model_type="CrossEncoder")(folder)

    return edit


def test_a_cross_encoder_with_a_list_of_modules(cross_encoder: Path) -> None:
    changed("sentence_bert_config.json", max_seq_length=20)(cross_encoder)
    assert baked(cross_encoder)[1].max_tokens == checkpoints.POSITIONS  # it is not read without a list
    listed_cross_encoder("Transformer")(cross_encoder)
    changed(SETTINGS, prompts={"q": "find: "}, default_prompt_name=None)(cross_encoder)
    manifest = baked(cross_encoder)[1]
    assert (manifest.kind, manifest.max_tokens, manifest.tasks) == (Kind.RERANKER, 20, ())


@pytest.mark.parametrize(
    ("edits", "reason"),
    [
        ([listed_cross_encoder("Transformer"), changed(SETTINGS, prompts={"q": "find: "},
          default_prompt_name="q")], "a cross-encoder whose pairs get a prompt ('find: ')"),
        ([listed_cross_encoder("Transformer", "Pooling", "Dense")], "a cross-encoder of Transformer, "),
        ([listed_cross_encoder("Transformer"), changed("config.json", architectures=["BertModel"])],
         "BertModel: only cross-encoders with a classifier"),
        ([changed("config.json", id2label={"0": "a", "1": "b"})], "2 labels"),
    ],
    ids=["prompt", "modules", "no-classifier", "labels"],
)  # fmt: skip
def test_a_cross_encoder_that_cannot_be_served_is_refused(
    cross_encoder: Path, capsys: pytest.CaptureFixture[str], edits: list[Edit], reason: str
) -> None:
    for edit in edits:
        edit(cross_encoder)
    assert main(["--source", str(cross_encoder), "--out", str(cross_encoder.parent / "models")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert reason in line


def test_the_second_text_has_the_second_type(cross_encoder: Path) -> None:
    opened = any_model.prepared(str(cross_encoder), NAME, offline=True)[0]
    assert opened.separator_id == 3
    typed = vectors(*baked(cross_encoder), TEXTS * 4)
    tensors = load_file(cross_encoder / "model.safetensors")
    name = "bert.embeddings.token_type_embeddings.weight"
    tensors[name][1] = tensors[name][0]
    save_file(tensors, cross_encoder / "model.safetensors")
    untyped = vectors(*baked(cross_encoder), TEXTS * 4)
    assert np.abs(typed - untyped).max() > 1e-3


def test_token_types(tmp_path: Path) -> None:
    graph = Graph("types")
    graph.input(INPUT_IDS, np.int64, ("batch", "tokens"))
    types = encoder.token_types(graph, 3)
    graph.op("Cast", "types.float", [types], {"to": 1})
    graph.output("types.float", ("batch", "tokens"))
    bundle.write_graphs(tmp_path, "made", {"types": graph}, lambda count: None)
    session = Session(tmp_path / "made" / "types.onnx", running.settings())
    ids = np.array([[2, 7, 3, 8, 3, 0, 0], [2, 3, 8, 9, 9, 9, 3], [2, 9, 9, 9, 9, 9, 9]])
    (found,) = session.run({INPUT_IDS: ids}, ["types.float"])
    expected = [[0, 0, 0, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1, 1], [0] * 7]
    np.testing.assert_array_equal(found, np.array(expected, dtype=np.float32))


# --- refusals ---------------------------------------------------------------------------------------------

OWN_CODE = {"AutoModel": "modeling_own.OwnModel"}
REFUSED: dict[str, tuple[list[Edit], str]] = {
    "own-code": ([changed("config.json", model_type="own", auto_map=OWN_CODE)], "trust_remote_code"),
    "own-code-of-a-known-type": ([changed("config.json", auto_map=OWN_CODE)], "trust_remote_code"),
    "own-tokenizer": (
        [changed("tokenizer_config.json", auto_map={"AutoTokenizer": ["own.Own", None]})],
        "trust_remote_code",
    ),
    "own-code-in-a-folder": (
        [nested, changed("0_Transformer/config.json", auto_map=OWN_CODE)],
        "trust_remote_code",
    ),
    "own-module": ([modules("Transformer", "Pooling", package="own_code")], "trust_remote_code"),
    "sparse": ([modules("MLMTransformer", "SpladePooling")], "can be served"),
    "no-pooling": ([modules("Transformer", "Normalize")], "can be served"),
    "transformer-alone": ([modules("Transformer")], "without Pooling it makes no vectors"),
    "sparse-by-its-word": ([changed(SETTINGS, model_type="SparseEncoder")], "'SparseEncoder'"),
    "root-before-dense": (
        [dense(), pooled(pooling_mode_mean_tokens=False, pooling_mode_mean_sqrt_len_tokens=True)],
        "pools by mean_sqrt_len_tokens: one of mean, cls, lasttoken can be served",
    ),
    "cut": ([changed(SETTINGS, truncate_dim=0)], "truncate_dim 0, must be a positive integer"),
    "two-poolings": ([pooled(pooling_mode_mean_tokens=True, pooling_mode_cls_token=True)], "alone"),
    "max-pooling": ([pooled(pooling_mode_mean_tokens=False, pooling_mode_max_tokens=True)], "max_tokens"),
    "weighted": ([pooled(pooling_mode_mean_tokens=False, pooling_mode_weightedmean_tokens=True)], "alone"),
    "prompt-left-out": (
        [pooled(include_prompt=False), changed("config_sentence_transformers.json", prompts={"a": "b"})],
        "include_prompt",
    ),
    "prompts": ([changed("config_sentence_transformers.json", prompts=["a"])], "must be texts by name"),
    "default-prompt": (
        [changed("config_sentence_transformers.json", prompts={"a": "b"}, default_prompt_name="c")],
        "is no prompt of it",
    ),
    "limit": ([changed("sentence_bert_config.json", max_seq_length=0)], "must be a positive integer"),
    "modules": ([lambda folder: write_json(folder / "modules.json", {"a": 1})], "not a list of JSON objects"),
    "dense": ([dense(activation_function="torch.nn.GELU")], "activation_function torch.nn.GELU"),
    "dense-code": ([dense(activation_function="own.Identity")], "activation_function own.Identity"),
    "dense-null": ([dense(activation_function=None)], "activation_function None"),
    "dense-weights": ([dense(), removed("2_Dense/model.safetensors")], "2_Dense holds none of"),
    "dense-on-tokens": ([dense(module_input_name="token_embeddings")], "a layer from token_embeddings to"),
    "dense-to-scores": ([dense(module_output_name="scores")], "from sentence_embedding to scores"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_served_is_refused(
    source: Path, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    edits, reason = REFUSED[case]
    for edit in edits:
        edit(source)
    out = source.parent / "models"
    assert main(["--source", str(source), "--out", str(out)]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and reason in lines[0]
    assert not out.exists()


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (changed("config.json", model_type="distilbert"), "model_type 'distilbert'"),
        (changed("config.json", hidden_act="relu"), "hidden_act 'relu'"),
        (changed("config.json", position_embedding_type="relative_key"), "position_embedding_type"),
        (changed("config.json", is_decoder=True), "is_decoder"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "no tokenizer.json"),
    ],
    ids=["type", "activation", "positions", "decoder", "tokenizer"],
)
def test_what_needs_the_exporter_names_the_command(
    source: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    edit: Edit,
    reason: str,
) -> None:
    monkeypatch.setattr(exporting, "PACKAGES", {"not_installed_anywhere": "not_installed_anywhere"})
    edit(source)
    assert main(["--source", str(source), "--out", str(source.parent / "models")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert reason in line and "pip install '.[export]'" in line and "not_installed_anywhere" in line


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--name", "Upper"], "cannot be the name"),
        (["--name", "../up"], "cannot be the name"),
        (["--name", "a.."], "cannot be the name"),
        (["--name", "a..b"], "cannot be the name"),
        (["--name", "a-"], "cannot be the name"),
        (["--name", "a" * 101], "of 100 letters at most"),
        (["--name", MODEL], "is a model of the catalog"),
        (["--name", "other", MODEL], "give --source and no MODEL"),
    ],
)
def test_a_wrong_name_is_refused(
    source: Path, capsys: pytest.CaptureFixture[str], words: list[str], reason: str
) -> None:
    assert main(["--source", str(source), "--out", str(source.parent / "models"), *words]) == 1
    assert reason in capsys.readouterr().err


def test_a_name_may_be_long(source: Path) -> None:
    assert baked(source, "--name", "a" * 100)[1].name == "a" * 100


def test_the_name_is_that_of_the_source() -> None:
    for name in ("a", "a--b", "a_b.c"):
        assert any_model.name_of("someone/some-model", name) == name
    assert any_model.name_of("someone/Some-Model@v1", None) == NAME


def test_what_differs_from_torch_is_not_published(source: Path) -> None:
    recipe, ready, _ = any_model.prepared(str(source), NAME, offline=True)
    wrong = np.zeros((parity.NUM_TEXTS, checkpoints.HIDDEN), dtype=np.float32)
    wrong[:, 0] = 1
    request = BakeRequest(out=source.parent / "models", precisions=(Precision.FP32,),
                          prepared=replace(ready, expected=Expected(wrong)))  # fmt: skip
    with pytest.raises(BakeError, match="differs from the model in torch by .*; nothing was published"):
        bake(recipe, request)
    assert not list((source.parent / "models").glob("[!.]*"))
