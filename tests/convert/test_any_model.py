"""Models outside the catalog: what their own files say, and what is refused. No torch here."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from falcon.testing import TestClient
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer, normalizers

from convert import any_model, bundle, encoder, exporting, parity, running, vocabulary
from convert.__main__ import main
from convert.bake import BakeRequest, bake
from convert.graph import INPUT_IDS, Graph
from convert.parity import Expected
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


def pooled(**flags: bool) -> Edit:
    return changed("1_Pooling/config.json", word_embedding_dimension=checkpoints.HIDDEN, **flags)


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


def test_without_modules_it_is_the_mean_and_says_so(
    source: Path, capsys: pytest.CaptureFixture[str], states: list[np.ndarray]
) -> None:
    (source / "modules.json").unlink()
    pooled(pooling_mode_mean_tokens=False, pooling_mode_cls_token=True)(source)
    shutil.rmtree(source / "1_Pooling")
    folder, manifest = baked(source)
    assert "no modules.json: pooled by mean" in capsys.readouterr().out
    expected = unit([state.mean(0) for state in states])
    np.testing.assert_allclose(vectors(folder, manifest), expected, atol=1e-6)


@pytest.mark.parametrize("activation", ["Tanh", "Identity"])
def test_a_dense_module(source: Path, states: list[np.ndarray], activation: str) -> None:
    draw = np.random.default_rng(0)
    weight = draw.normal(size=(24, checkpoints.HIDDEN)).astype(np.float32)
    bias = draw.normal(size=24).astype(np.float32)
    modules("Transformer", "Pooling", "Dense", "Normalize")(source)
    kind = f"torch.nn.modules.any.{activation}"
    changed("2_Dense/config.json", in_features=32, out_features=24, activation_function=kind)(source)
    save_file({"linear.weight": weight, "linear.bias": bias}, source / "2_Dense" / "model.safetensors")
    folder, manifest = baked(source)
    assert (manifest.dimensions, manifest.outputs) == (24, (Output.POOLED,))
    function = np.tanh if activation == "Tanh" else np.asarray
    expected = unit([function(weight @ state.mean(0) + bias) for state in states])
    np.testing.assert_allclose(vectors(folder, manifest), expected, atol=1e-6)
    assert set(manifest.source.sha256) == {"model.safetensors", "2_Dense/model.safetensors"}


def test_a_transformer_in_a_folder_of_its_own(source: Path, states: list[np.ndarray]) -> None:
    inner = source / "0_Transformer"
    inner.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json", "sentence_bert_config.json"):
        (source / name).rename(inner / name)
    entries = json.loads((source / "modules.json").read_text())
    entries[0]["path"] = inner.name
    write_json(source / "modules.json", entries)
    folder, manifest = baked(source)
    expected = unit([state.mean(0) for state in states])
    np.testing.assert_allclose(vectors(folder, manifest), expected, atol=1e-6)


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


def test_verify_knows_such_a_bundle(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, _ = baked(source)
    assert main(["verify", NAME, "--out", str(folder.parent)]) == 0
    assert f"{NAME} fp32: verified" in capsys.readouterr().out


def test_a_bundle_that_is_there_is_kept(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, _ = baked(source)
    assert main(["--source", str(source), "--out", str(folder.parent)]) == 0
    assert "is there already" in capsys.readouterr().out


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
        vocabulary.of_word_pieces(tmp_path / "vocab.txt", lowercases=True)


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
    "own-module": ([modules("Transformer", "Pooling", package="own_code")], "trust_remote_code"),
    "sparse": ([modules("MLMTransformer", "SpladePooling")], "can be served"),
    "no-pooling": ([modules("Transformer", "Normalize")], "can be served"),
    "two-poolings": ([pooled(pooling_mode_mean_tokens=True, pooling_mode_cls_token=True)], "alone"),
    "max-pooling": ([pooled(pooling_mode_mean_tokens=False, pooling_mode_max_tokens=True)], "max_tokens"),
    "weighted": ([pooled(pooling_mode_mean_tokens=False, pooling_mode_weightedmean_tokens=True)], "alone"),
    "two-labels": ([changed("config.json", architectures=["BertForSequenceClassification"])], "2 labels"),
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
    "dense": (
        [modules("Transformer", "Pooling", "Dense"), changed("2_Dense/config.json", out_features=4,
         activation_function="torch.nn.GELU")],
        "activation_function GELU",
    ),
    "dense-weights": (
        [modules("Transformer", "Pooling", "Dense"), changed("2_Dense/config.json", out_features=4)],
        "2_Dense holds none of",
    ),
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
        (lambda folder: (folder / "tokenizer.json").unlink(), "no tokenizer.json"),
    ],
    ids=["type", "activation", "positions", "tokenizer"],
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
        (["--name", MODEL], "is a model of the catalog"),
        (["--name", "other", MODEL], "give --source and no MODEL"),
    ],
)
def test_a_wrong_name_is_refused(
    source: Path, capsys: pytest.CaptureFixture[str], words: list[str], reason: str
) -> None:
    assert main(["--source", str(source), "--out", str(source.parent / "models"), *words]) == 1
    assert reason in capsys.readouterr().err


def test_the_name_is_that_of_the_source() -> None:
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
