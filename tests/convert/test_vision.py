"""The vision tower against a second implementation in numpy, and how its attention is laid out."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from convert import vision, vision_config
from convert.checkpoint import Checkpoint
from service import manifest as contract
from service.errors import BakeError
from service.session import Session, SessionSettings
from service.vision import IMAGE_PATCHES, IMAGE_VECTORS, PIXEL_VALUES, WINDOW_PATCHES, Vision
from service.windows import Patches, tower_inputs
from tests import qwen, qwen_vl, qwen_vl_reference, xlmr
from tests.qwen_vl import JINA_V4, SIZES
from tests.qwen_vl_reference import Grid, Picture, Reference

TOLERANCE = 5e-6  # of vectors whose numbers are around 0.3
SEEN = 20 * TOLERANCE  # a mistake changes more than this
GRIDS: list[Grid] = [(2, 2), (6, 10), (10, 6), (8, 8), (16, 8), (16, 24), (18, 22), (2, 40)]
TOGETHER: list[list[Grid]] = [
    [(6, 10), (6, 10)],
    [(8, 8), (8, 8), (8, 8)],
    [(6, 10), (10, 6)],
    [(2, 2), (18, 22), (8, 16)],
    [(16, 16), (2, 4)],
]
LARGE = (64, 64)
BIASES = (
    "attn.qkv", "attn.proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj", "merger.mlp.0", "merger.mlp.2",
)  # fmt: skip
MISTAKES: list[dict[str, Any]] = [
    {"vision_theta": 1_000_000.0},
    {"full_blocks": ()},
    {"full_blocks": (0, 1, 2)},
    {"full_blocks": (2,)},
    {"swaps_rows_and_columns": True},
    {"gelu_by_tanh": True},
    {"mixes_images": True},
    *({"without": (bias,)} for bias in BIASES),
]


@dataclass(frozen=True)
class Tower:
    """The tower of a bundle, what its manifest says of images, and the reference over the same tensors."""

    file: Path
    session: Session
    vision: Vision
    reference: Reference

    def run(self, pictures: Sequence[Picture]) -> list[np.ndarray]:
        """Return the vectors of each image, cell by cell, rows first."""
        inputs, rows = tower_inputs([Patches(each.patches, each.grid) for each in pictures], self.vision)
        (computed,) = self.session.run(inputs, [IMAGE_VECTORS])
        assert computed.shape == (len(rows), SIZES.text.hidden)
        ends = np.cumsum([len(picture.patches) // SIZES.merge**2 for picture in pictures])
        return np.split(computed[rows].astype(np.float64), ends[:-1])


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return qwen_vl.write_jina_v4(tmp_path_factory.mktemp("v4") / "checkpoint")


@pytest.fixture(scope="module")
def tower(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Tower:
    bundle = xlmr.bake_tiny(tmp_path_factory.mktemp("models"), JINA_V4, source, ("none",))
    found = contract.load(bundle).vision
    assert found is not None
    file = bundle / found.file
    return Tower(file, Session(file, SessionSettings(num_threads=2)), found, qwen_vl_reference.read(source))


def drawn(grid: Grid, seed: int = 0) -> Picture:
    values = np.random.default_rng([seed, *grid]).standard_normal((grid[0] * grid[1], SIZES.patch_values))
    return Picture(values.astype(np.float32), grid)


def difference(computed: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> float:
    return max(float(np.abs(one - other).max()) for one, other in zip(computed, expected, strict=True))


# --- numbers ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_vectors_equal_numpy(tower: Tower, grid: Grid) -> None:
    picture = drawn(grid)
    (expected,) = tower.reference.image_vectors([picture])
    assert difference(tower.run([picture]), [expected]) < TOLERANCE
    assert 0.1 < expected.std() < 1


@pytest.mark.parametrize("grids", TOGETHER, ids=str)
def test_images_of_one_run_do_not_see_each_other(tower: Tower, grids: list[Grid]) -> None:
    pictures = [drawn(grid, seed) for seed, grid in enumerate(grids)]
    together = tower.run(pictures)
    assert difference(together, tower.reference.image_vectors(pictures)) < TOLERANCE
    alone = [vectors for picture in pictures for vectors in tower.run([picture])]
    assert difference(together, alone) < TOLERANCE
    assert difference(together, tower.run(pictures[::-1])[::-1]) < TOLERANCE


@pytest.mark.parametrize("mistake", MISTAKES, ids=str)
def test_a_mistake_would_be_seen(tower: Tower, mistake: dict[str, Any]) -> None:
    pictures = [drawn((18, 22)), drawn((6, 10))]
    wrong = replace(tower.reference, **mistake).image_vectors(pictures)
    assert difference(tower.run(pictures), wrong) > SEEN


def test_the_eps_of_norms_is_seen_in_a_dark_image(tower: Tower) -> None:
    """Patches of numbers near 0, which the first norm makes large."""
    picture = drawn((6, 10))
    dark = replace(picture, patches=picture.patches * np.float32(1e-3))
    (expected,) = tower.reference.image_vectors([dark])
    assert difference(tower.run([dark]), [expected]) < TOLERANCE
    assert difference([expected], replace(tower.reference, vision_eps=1e-5).image_vectors([dark])) > SEEN


def test_rows_and_columns_are_not_exchanged(tower: Tower) -> None:
    picture = drawn((6, 10))
    (turned,) = tower.run([replace(picture, grid=(10, 6))])
    (expected,) = tower.reference.image_vectors([picture])
    assert difference([turned], [expected]) > SEEN


def test_a_tower_of_other_sizes(tmp_path: Path) -> None:
    """Larger windows and cells, other patches, and full attention first and last."""
    sizes = replace(
        SIZES, blocks=4, full_blocks=(0, 3), hidden=48, heads=3, patch=4, repeats=1, merge=3, window=24
    )
    folder = qwen_vl.write_jina_v4(tmp_path / "checkpoint", sizes)
    bundle = xlmr.bake_tiny(tmp_path / "models", JINA_V4, folder, ("none",))
    found = contract.load(bundle).vision
    assert found is not None
    assert (found.patch_size, found.temporal_patch_size, found.merge_size, found.window_size) == (4, 1, 3, 2)
    values = np.random.default_rng(1).standard_normal((9 * 15, sizes.patch_values)).astype(np.float32)
    inputs, rows = tower_inputs([Patches(values, (9, 15))], found)
    session = Session(bundle / found.file, SessionSettings(num_threads=2))
    (computed,) = session.run(inputs, [IMAGE_VECTORS])
    (expected,) = qwen_vl_reference.read(folder, sizes=sizes).image_vectors([Picture(values, (9, 15))])
    assert difference([computed[rows]], [expected]) < TOLERANCE


# --- layout -----------------------------------------------------------------------------------------------


def executed(tower: Tower, grids: Sequence[Grid], folder: Path) -> list[dict[str, Any]]:
    """Run images under ONNX Runtime's profiler; return what it says of every node that was run."""
    inputs, _ = tower_inputs([Patches(drawn(grid).patches, grid) for grid in grids], tower.vision)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.enable_profiling = True
    options.profile_file_prefix = str(folder / "profile")
    session = onnxruntime.InferenceSession(str(tower.file), options, providers=["CPUExecutionProvider"])
    session.run([IMAGE_VECTORS], dict(inputs))
    events = json.loads(Path(session.end_profiling()).read_text())
    return [event for event in events if event["name"].endswith("_kernel_time")]


def branches(nodes: Sequence[dict[str, Any]]) -> list[str]:
    """Return `padded` or `unpadded` for the attention of every block, in their order."""
    names = [node["name"] for node in nodes if node["args"]["op_name"] == "MultiHeadAttention"]
    return [next(part for part in name.split(".") if part in ("padded", "unpadded")) for name in names]


def largest(nodes: Sequence[dict[str, Any]]) -> int:
    """Return how many numbers the largest value has that a node takes or gives."""
    shapes = [
        shape
        for node in nodes
        for key in ("input_type_shape", "output_type_shape")
        for typed in node["args"][key]
        for shape in typed.values()
    ]
    return max(int(np.prod(shape, dtype=np.int64)) for shape in shapes)


def test_no_mask_where_all_windows_are_full(tower: Tower, tmp_path: Path) -> None:
    """A mask of patches x patches takes gigabytes of memory for a large image."""
    nodes = executed(tower, [LARGE], tmp_path)
    num_patches = LARGE[0] * LARGE[1]
    assert branches(nodes) == ["unpadded"] * SIZES.blocks
    assert largest(nodes) == num_patches * SIZES.patch_values  # the pixels themselves


@pytest.mark.parametrize(
    ("grids", "windowed", "full"),
    [
        ([(2, 2)], "unpadded", "unpadded"),
        ([(16, 24)], "unpadded", "unpadded"),
        ([(8, 8), (8, 8)], "unpadded", "unpadded"),
        ([(6, 10), (6, 10)], "padded", "unpadded"),  # windows of 6 x 8 and 6 x 2
        ([(18, 22)], "padded", "unpadded"),
        ([(8, 8), (8, 16)], "unpadded", "padded"),
        ([(8, 8), (6, 10)], "padded", "padded"),
    ],
    ids=str,
)
def test_only_rows_of_unequal_length_are_masked(
    tower: Tower, tmp_path: Path, grids: list[Grid], windowed: str, full: str
) -> None:
    expected = [full if block in SIZES.full_blocks else windowed for block in range(SIZES.blocks)]
    assert branches(executed(tower, grids, tmp_path)) == expected


def test_a_window_costs_what_a_window_costs(tower: Tower, tmp_path: Path) -> None:
    """Attention in windows takes rows of a window's length, not the image's."""
    nodes = executed(tower, [LARGE], tmp_path)
    window = SIZES.window_patches**2
    rows = []
    for node in nodes:
        if node["args"]["op_name"] == "MultiHeadAttention":
            ((shape,),) = (typed.values() for typed in node["args"]["input_type_shape"][:1])
            rows.append(tuple(shape))
    windowed = (LARGE[0] * LARGE[1] // window, window, SIZES.hidden)
    full = (1, LARGE[0] * LARGE[1], SIZES.hidden)
    assert rows == [full if block in SIZES.full_blocks else windowed for block in range(SIZES.blocks)]


def test_the_layers_of_the_graph_read_their_own_layout(tower: Tower) -> None:
    """Windowed layers take WINDOW_PATCHES and full ones IMAGE_PATCHES, in the graph and in both branches."""
    graph = onnx.load(str(tower.file), load_external_data=False).graph
    conditions = [node for node in graph.node if node.op_type == "If"]
    assert len(conditions) == SIZES.blocks
    for block, condition in enumerate(conditions):
        own, other = WINDOW_PATCHES, IMAGE_PATCHES
        if block in SIZES.full_blocks:
            own, other = other, own
        inner = [node for attribute in condition.attribute for node in attribute.g.node]
        used = {*condition.input, *(name for node in inner for name in node.input)}
        assert reaches(graph, used, own), block
        assert not reaches(graph, {name for name in used if not name.startswith("visual.")}, other), block


def reaches(graph: onnx.GraphProto, names: set[str], wanted: str) -> bool:
    """Tell whether values are made of an input of the graph."""
    found = names - {""}
    for node in reversed(list(graph.node)):
        if found & {*node.output}:
            found |= {*node.input} - {""}
    return wanted in found


def test_the_tower_is_float32_and_its_weights_are_outside(tower: Tower) -> None:
    graph = onnx.load(str(tower.file), load_external_data=False).graph
    kinds = Counter(node.op_type for node in graph.node)
    per_block, outside = 7, 3  # linear layers: of a block; patches, two of the merger
    assert kinds["MatMul"] == per_block * SIZES.blocks + outside + 1  # and the angles
    assert not {"MatMulIntegerToFloat", "MatMulNBits", "GatherBlockQuantized"} & {*kinds}
    assert {tensor.data_type for tensor in graph.initializer} <= {
        onnx.TensorProto.FLOAT, onnx.TensorProto.INT64,
    }  # fmt: skip
    norms = [node for node in graph.node if node.op_type.endswith("SimplifiedLayerNormalization")]
    assert len(norms) == 2 * SIZES.blocks + 1
    for node in norms:
        (eps,) = (attribute.f for attribute in node.attribute if attribute.name == "epsilon")
        assert eps == np.float32(qwen_vl.VISION_EPS)
    assert tower.file.stat().st_size < 100_000
    assert {value.name for value in graph.input} == {
        PIXEL_VALUES, "patch_positions", WINDOW_PATCHES, IMAGE_PATCHES,
    }  # fmt: skip


# --- what is refused --------------------------------------------------------------------------------------

TENSORS: list[tuple[str, tuple[int, ...]]] = [
    ("patch_embed.proj.weight", (32, 3, 2, 14, 13)),
    ("patch_embed.proj.weight", (31, 3, 2, 14, 14)),
    ("blocks.0.norm1.weight", (31,)),
    ("blocks.2.norm2.weight", (1,)),
    ("blocks.1.attn.proj.weight", (32, 31)),
    ("blocks.1.attn.proj.bias", (1, 32)),
    ("blocks.2.mlp.gate_proj.weight", (32, 44)),
    ("blocks.2.mlp.gate_proj.bias", (32,)),
    ("blocks.2.mlp.up_proj.weight", (43, 32)),
    ("blocks.2.mlp.up_proj.bias", (43,)),
    ("blocks.0.mlp.down_proj.weight", (44, 32)),
    ("blocks.0.mlp.down_proj.bias", (44,)),
    ("merger.ln_q.weight", (128,)),
    ("merger.mlp.0.weight", (64, 128)),
    ("merger.mlp.0.bias", (64,)),
    ("merger.mlp.2.weight", (32, 128)),
    ("merger.mlp.2.bias", (32,)),
]


def build(folder: Path) -> None:
    opened = Checkpoint(folder)
    vision.build(opened.weights, vision_config.read(opened.config))


def copied(source: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(source, tmp_path / "copy"))


@pytest.mark.parametrize(("name", "shape"), TENSORS, ids=str)
def test_a_tensor_of_another_shape_is_named(
    source: Path, tmp_path: Path, name: str, shape: tuple[int, ...]
) -> None:
    folder = copied(source, tmp_path)
    qwen_vl.change_tensors(folder, **{f"visual.{name}": np.zeros(shape, dtype=np.float32)})
    with pytest.raises(BakeError, match=f"visual.{name}"):
        build(folder)


@pytest.mark.parametrize(
    "name", sorted({name for name, _ in TENSORS} | {"blocks.1.attn.qkv.weight", "blocks.1.attn.qkv.bias"})
)
def test_a_missing_tensor_is_named(source: Path, tmp_path: Path, name: str) -> None:
    folder = copied(source, tmp_path)
    qwen_vl.change_tensors(folder, f"visual.{name}")
    with pytest.raises(BakeError, match=f"no tensor 'visual.{name}'"):
        build(folder)


@pytest.mark.parametrize("end", ["weight", "bias"])
def test_fused_queries_keys_and_values_of_another_size_are_refused(
    source: Path, tmp_path: Path, end: str
) -> None:
    folder, name = copied(source, tmp_path), f"visual.blocks.1.attn.qkv.{end}"
    shorter = qwen_vl.read_tensors(source)[name][:-1]
    qwen_vl.change_tensors(folder, **{name: shorter})
    with pytest.raises(BakeError, match=f"{name} has 95 rows instead of 96"):
        build(folder)


@pytest.mark.parametrize(("depth", "found"), [(2, 3), (4, 3)])
def test_another_number_of_blocks_is_refused(source: Path, tmp_path: Path, depth: int, found: int) -> None:
    folder = copied(source, tmp_path)
    qwen.change_json(folder / "config.json", vision_config={**SIZES.vision_config, "depth": depth})
    with pytest.raises(BakeError, match=f"has {found} vision layers, its config.json says {depth}"):
        build(folder)


def test_a_kernel_in_another_order_of_axes_is_refused(source: Path, tmp_path: Path) -> None:
    """Channels last, as other frameworks store it: as many numbers, other patches."""
    folder, name = copied(source, tmp_path), "visual.patch_embed.proj.weight"
    kernel = qwen_vl.read_tensors(source)[name]
    qwen_vl.change_tensors(folder, **{name: np.ascontiguousarray(np.moveaxis(kernel, 1, -1))})
    with pytest.raises(BakeError, match="patch_embed.proj.weight"):
        build(folder)
