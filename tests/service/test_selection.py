"""The choice of a precision."""

from __future__ import annotations

import pytest

from service.errors import BundleError
from service.figures import Speed
from service.manifest import Kind, Manifest, Pooling, Precision, Source, Variant
from service.selection import choose

FP32, INT8, BLOCK = Precision.FP32, Precision.INT8, Precision.INT8_BLOCK


def variant(
    precision: Precision, tokens_per_second: float, *, verified: bool = True, on: str = "avx2"
) -> Variant:
    speed = Speed(tokens_per_second=tokens_per_second, instruction_set=on, num_threads=2)
    return Variant(precision=precision, file=f"{precision}/model.onnx", verified=verified, speed=speed)


def manifest(*variants: Variant) -> Manifest:
    return Manifest(
        name="m",
        kind=Kind.EMBEDDING,
        pooling=Pooling.MEAN,
        licence="",
        owned_by="",
        source=Source(id=""),
        max_tokens=1,
        dimensions=1,
        variants=variants,
    )


@pytest.mark.parametrize(
    ("variants", "instruction_set", "expected", "verified"),
    [
        ((variant(FP32, 10), variant(INT8, 20), variant(BLOCK, 5)), "avx2", INT8, True),
        ((variant(FP32, 10), variant(INT8, 20, verified=False), variant(BLOCK, 15)), "avx2", BLOCK, True),
        ((variant(FP32, 10), variant(INT8, 5)), "avx512_vnni", INT8, True),
        ((variant(FP32, 10, on="amx_int8"), variant(INT8, 50, on="amx_int8")), "avx2", FP32, True),
        ((variant(FP32, 10), variant(INT8, 50, on="other")), "avx2", FP32, True),
        ((variant(INT8, 10, verified=False), variant(BLOCK, 1, verified=False)), "avx2", BLOCK, False),
    ],
    ids=["fastest", "verified-only", "unmeasured-vnni", "unmeasured-plain", "half-measured", "none-verified"],
)
def test_auto(
    variants: tuple[Variant, ...], instruction_set: str, expected: Precision, verified: bool
) -> None:
    choice = choose(manifest(*variants), None, instruction_set)
    assert (choice.precision, choice.verified) == (expected, verified)


def test_by_name_takes_an_unverified_one() -> None:
    choice = choose(manifest(variant(FP32, 10), variant(INT8, 20, verified=False)), INT8, "avx2")
    assert (choice.precision, choice.verified) == (INT8, False)


def test_what_was_not_baked_is_refused_with_the_remedy() -> None:
    with pytest.raises(BundleError, match="python -m convert m --precision fp32,int8 --force"):
        choose(manifest(variant(FP32, 10)), INT8, "avx2")
