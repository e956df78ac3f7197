"""The choice of a device and a precision: rows of the table, on made-up manifests and hosts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from service.devices import CPU, Device, Kind
from service.errors import BundleError, ConfigError
from service.figures import Quality, RankQuality, Speed
from service.manifest import BASE_TASK, Manifest, Pooling, Precision, Source, Variant
from service.manifest import Kind as ModelKind
from service.selection import Choice, Site, check_precision, choose

FP32, INT8, BLOCK, INT4 = Precision.FP32, Precision.INT8, Precision.INT8_BLOCK, Precision.INT4
FP16, BF16 = Precision.FP16, Precision.BF16
GPU = Device(Kind.CUDA, 1)
AVX2, VNNI = Site("avx2"), Site("avx512_vnni")
AUTO, FORCED = Site("avx2", GPU), Site("avx2", GPU, is_required=True)
BELOW_FLOOR = Quality(mean_cosine=0.9, worst_cosine=0.5, top10_overlap=0.5, num_texts=400)


def variant(
    precision: Precision, tokens_per_second: float = 0, *, verified: bool = True, on: str = "avx2"
) -> Variant:
    """Make a variant; without a speed it was not measured."""
    speed = Speed(tokens_per_second=tokens_per_second, instruction_set=on, num_threads=2)
    return Variant(
        precision=precision,
        file=f"{precision}/model.onnx",
        verified=verified,
        speed=speed if tokens_per_second else None,
    )


def unmeasured(precision: Precision) -> Variant:
    return variant(precision, verified=False)


def failed(precision: Precision) -> Variant:
    return replace(unmeasured(precision), quality=BELOW_FLOOR)


def manifest(*variants: Variant, is_decoder: bool = False) -> Manifest:
    return Manifest(
        name="m",
        kind=ModelKind.EMBEDDING,
        pooling=Pooling.MEAN,
        licence="",
        owned_by="",
        source=Source(id=""),
        max_tokens=1,
        dimensions=1,
        variants=variants,
        is_decoder=is_decoder,
    )


def on_cpu(described: Manifest, wanted: Precision | None, site: Site) -> Choice:
    (choice,) = choose(described, wanted, site)
    assert choice.device == CPU
    return choice


# --- the CPU ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variants", "instruction_set", "expected", "verified"),
    [
        ((variant(FP32, 10), variant(INT8, 20), variant(BLOCK, 5)), "avx2", INT8, True),
        ((variant(FP32, 10), variant(INT8, 20, verified=False), variant(BLOCK, 15)), "avx2", BLOCK, True),
        ((variant(FP32, 10), variant(INT8, 5)), "avx512_vnni", INT8, True),
        ((variant(FP32, 10, on="amx_int8"), variant(INT8, 50, on="amx_int8")), "avx2", FP32, True),
        ((variant(FP32, 10), variant(INT8, 50, on="other")), "avx2", FP32, True),
        ((variant(INT4, 30), variant(FP32, 10), variant(INT8, 20)), "avx2", INT4, True),
        ((variant(INT4), variant(BLOCK)), "avx512_vnni", BLOCK, True),
        ((variant(FP16, 90), variant(BF16, 99), variant(FP32, 10)), "avx2", FP32, True),
        ((variant(FP16), variant(FP32)), "avx2", FP32, True),
        ((variant(INT8, 10, verified=False), variant(BLOCK, 1, verified=False)), "avx2", BLOCK, False),
        ((failed(INT4), failed(INT8)), "avx2", INT8, False),
        ((variant(FP16), unmeasured(BLOCK)), "avx2", BLOCK, False),
    ],
    ids=[
        "fastest", "verified-only", "unmeasured-vnni", "unmeasured-plain", "half-measured", "int4-fastest",
        "int4-is-last", "never-half-floats", "nor-unmeasured-ones", "none-verified", "failed-ones",
        "verified-for-cuda-alone",
    ],
)  # fmt: skip
def test_auto(
    variants: tuple[Variant, ...], instruction_set: str, expected: Precision, verified: bool
) -> None:
    choice = on_cpu(manifest(*variants), None, Site(instruction_set))
    assert (choice.precision, choice.verified) == (expected, verified)


def test_the_slowest_task_and_all_of_them_count_but_not_the_base_weights() -> None:
    tasks = [replace(variant(INT8, speed), task=str(speed)) for speed in (5, 50)]
    fp32 = [replace(variant(FP32, 10), task=str(speed)) for speed in (5, 50)]
    assert on_cpu(manifest(*tasks, *fp32), None, AVX2).precision == FP32
    base = replace(variant(INT8, 1, verified=False), task=BASE_TASK)
    assert on_cpu(manifest(tasks[1], base, fp32[1]), None, AVX2).precision == INT8
    assert not on_cpu(manifest(tasks[1], replace(tasks[0], verified=False)), None, AVX2).verified


def test_by_name_takes_an_unverified_one() -> None:
    choice = on_cpu(manifest(variant(FP32, 10), failed(INT8)), INT8, AVX2)
    assert (choice.precision, choice.verified, choice.reason) == (INT8, False, "set by PRECISION")


def test_what_was_not_baked_is_refused_with_the_remedy() -> None:
    with pytest.raises(BundleError, match="python -m convert m --precision fp32,int8 --force"):
        choose(manifest(variant(FP32, 10)), INT8, AVX2)


@pytest.mark.parametrize("wanted", [FP16, BF16])
def test_half_floats_are_refused_on_the_cpu(wanted: Precision) -> None:
    with pytest.raises(BundleError, match="does not run in .* on the CPU.*PRECISION=auto"):
        choose(manifest(variant(FP32), variant(wanted)), wanted, AVX2)
    with pytest.raises(ConfigError, match=f"PRECISION is {wanted}"):
        check_precision(wanted, CPU)
    check_precision(wanted, GPU)
    check_precision(INT8, CPU)


def test_a_bundle_for_cuda_alone_is_refused_on_the_cpu_with_the_remedy() -> None:
    with pytest.raises(BundleError, match="only bf16,fp16, for CUDA.*--precision bf16,fp16,fp32 --force"):
        choose(manifest(variant(BF16), variant(FP16)), None, AVX2)


# --- memory ----------------------------------------------------------------------------------------------

NEEDS = {FP32: 4_000_000_000, INT8: 1_100_000_000, BLOCK: 1_200_000_000, INT4: 600_000_000}
ALL = manifest(variant(FP32, 90), variant(INT8, 20), variant(BLOCK, 30), failed(INT4))
SLOW_INT8 = manifest(variant(FP32), variant(INT8), variant(BLOCK))


@pytest.mark.parametrize(
    ("described", "wanted", "room", "expected"),
    [
        (ALL, None, None, FP32),
        (ALL, None, 4_000_000_000, FP32),
        (ALL, None, 3_999_999_999, BLOCK),
        (ALL, None, 1_199_999_999, INT8),
        (SLOW_INT8, None, 2_000_000_000, BLOCK),
        (manifest(unmeasured(FP32), unmeasured(BLOCK), unmeasured(INT4)), None, 10**9, INT4),
        (ALL, INT4, 10**9, INT4),
    ],
    ids=["unknown", "exactly", "fastest-that-fits", "smallest", "unmeasured", "unverified", "by-name"],
)
def test_what_fits(
    described: Manifest, wanted: Precision | None, room: int | None, expected: Precision
) -> None:
    (choice,) = choose(described, wanted, Site("avx2", room_bytes=room), NEEDS)
    assert (choice.precision, choice.needed_bytes) == (expected, NEEDS[expected])


def test_what_did_not_fit_is_part_of_the_reason() -> None:
    (choice,) = choose(ALL, None, Site("avx2", room_bytes=1_300_000_000), NEEDS)
    assert choice.reason == (
        "fastest verified precision measured on avx2; no memory for fp32 (4.00 GB): 1.30 GB are left"
    )


@pytest.mark.parametrize(
    ("wanted", "room", "message"),
    [
        (None, 10**9, r"m needs 1\.10 GB of memory in int8, its smallest verified precision, but 1\.00 GB"),
        (FP32, 2 * 10**9, r"m needs 4\.00 GB of memory in fp32, but 2\.00 GB are left.*WORKERS"),
        (INT4, -5, r"m needs 0\.60 GB of memory in int4, but 0\.00 GB are left.*MODELS_TO_LOAD"),
    ],
)
def test_what_does_not_fit_says_how_much_it_needs(wanted: Precision | None, room: int, message: str) -> None:
    with pytest.raises(BundleError, match=message):
        choose(ALL, wanted, Site("avx2", room_bytes=room), NEEDS)


# --- CUDA ------------------------------------------------------------------------------------------------

EVERYTHING = [variant(precision) for precision in Precision]


@pytest.mark.parametrize(
    ("variants", "is_decoder", "expected"),
    [
        (EVERYTHING, True, [BF16, FP16]),
        (EVERYTHING, False, [FP16, BF16, FP32, BLOCK]),
        ([variant(FP32), variant(FP16)], False, [FP16, FP32]),
        ([variant(BLOCK), variant(INT8)], False, [BLOCK]),
        ([variant(FP32), failed(FP16), variant(BF16)], False, [BF16, FP32]),
        ([variant(FP32), unmeasured(FP16)], False, [FP32, FP16]),
        ([unmeasured(BF16), variant(FP16)], True, [FP16, BF16]),
        ([failed(BF16), failed(FP16)], True, [BF16, FP16]),
        ([unmeasured(BLOCK), unmeasured(BF16)], True, [BF16]),
    ],
    ids=[
        "decoder", "encoder", "some", "blocks", "failed", "unmeasured", "verified-first", "only-failed",
        "above-a-billion",
    ],
)  # fmt: skip
def test_order_on_cuda(variants: Sequence[Variant], is_decoder: bool, expected: list[Precision]) -> None:
    described = manifest(*variants, is_decoder=is_decoder)
    choices = choose(described, None, FORCED)
    assert [choice.precision for choice in choices] == expected
    assert {choice.device for choice in choices} == {GPU}
    for choice in choices:
        verified = next(each.verified for each in variants if each.precision == choice.precision)
        assert choice.verified == verified
    auto = choose(described, None, AUTO)
    assert [choice.precision for choice in auto if choice.device == GPU] == expected


def test_auto_goes_to_the_cpu_behind_cuda() -> None:
    described = manifest(variant(FP32, 10), variant(INT8, 20), variant(FP16))
    choices = choose(described, None, AUTO, NEEDS | {FP16: 2_000_000_000})
    assert [choice.needed_bytes for choice in choices] == [0, 0, NEEDS[INT8]]  # of the host's memory
    assert [(choice.precision, choice.device) for choice in choices] == [
        (FP16, GPU), (FP32, GPU), (INT8, CPU),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("variants", "wanted", "is_decoder", "reason"),
    [
        ([variant(FP32), variant(INT8)], None, True, r"bf16 and fp16 alone.*convert m --precision bf16,fp16"),
        ([variant(FP32)], FP32, True, r"PRECISION is fp32.*convert m --precision bf16,fp16 --force"),
        ([variant(INT4), variant(BF16)], INT4, True, "PRECISION is int4"),
        ([variant(INT8)], None, False, r"MatMulIntegerToFloat.*baked are int8.*--precision fp16,bf16"),
        ([variant(INT8), variant(FP16)], INT8, False, "MatMulIntegerToFloat.*PRECISION is int8"),
        ([variant(BLOCK), failed(BF16)], None, True, "bf16 are below their floor.*PRECISION=bf16"),
    ],
    ids=["decoder", "fp32-by-name", "int4-decoder", "int8", "int8-by-name", "below-floor"],
)
def test_what_does_not_run_on_cuda(
    variants: list[Variant], wanted: Precision | None, is_decoder: bool, reason: str
) -> None:
    described = manifest(*variants, is_decoder=is_decoder)
    with pytest.raises(BundleError, match=f"m does not run on cuda:1 .*{reason}"):
        choose(described, wanted, FORCED)
    (choice,) = choose(described, wanted, AUTO)
    assert choice.device == CPU
    assert "not on cuda:1: " in choice.reason


@pytest.mark.parametrize("wanted", [FP16, BF16, FP32, BLOCK, INT4])
def test_by_name_on_cuda(wanted: Precision) -> None:
    (choice,) = choose(manifest(*EVERYTHING[:-1], failed(BF16)), wanted, FORCED)
    assert (choice.precision, choice.device, choice.reason) == (wanted, GPU, "set by PRECISION")
    assert choice.verified == (wanted != BF16)


def test_cuda_needs_no_room_on_the_host() -> None:
    site = Site("avx2", GPU, room_bytes=10)
    choices = choose(manifest(variant(FP32), variant(FP16)), None, site, NEEDS)
    assert [choice.device for choice in choices] == [GPU, GPU]  # and no CPU behind: it would not fit


def test_half_floats_by_name_have_no_cpu_behind_them() -> None:
    (choice,) = choose(manifest(*EVERYTHING), FP16, AUTO)
    assert choice.device == GPU


def test_a_reranker_below_its_floor_is_known_by_its_ranks() -> None:
    ranks = RankQuality(rank_correlation=0.5, worst_score_error=0.5, num_pairs=9)
    described = manifest(variant(FP32), replace(unmeasured(FP16), rank_quality=ranks))
    assert [choice.precision for choice in choose(described, None, FORCED)] == [FP32]
