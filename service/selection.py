"""Where a model of a bundle runs and in which precision, and why: what to try, in order.

Pure; knows the manifest and what is told of the host. NOTE: what the tables say of CUDA is from the kernels
that ONNX Runtime 1.31.1's library holds, and has not run on a GPU yet.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from service import commands, host
from service.devices import CPU, Device, Kind
from service.errors import BundleError, ConfigError
from service.manifest import BASE_TASK, Manifest, Precision, Variant

FP32, FP16, BF16 = Precision.FP32, Precision.FP16, Precision.BF16
INT8, BLOCK, INT4 = Precision.INT8, Precision.INT8_BLOCK, Precision.INT4
# The CPU, where no precision is verified, or no speed was measured and 8 bits are not fast.
BY_ACCURACY = (FP32, BLOCK, INT8, INT4)
# The CPU, where the bake measured no speed on this instruction set.
UNMEASURED_WITH_FAST_INT8 = (INT8, FP32, BLOCK, INT4)
NOT_ON_CPU = {
    FP16: "the CPU would compute fp16 in float32, no faster and less exact than fp32",
    BF16: "ONNX Runtime has no bf16 kernels for the CPU",
}
# CUDA, by whether the model is a decoder: their activations overflow fp16 in places.
ON_CUDA = {True: (BF16, FP16), False: (FP16, BF16, FP32, BLOCK)}
BY_NAME_ON_CUDA = {True: ON_CUDA[True], False: (*ON_CUDA[False], INT4)}
NOT_ON_CUDA = {
    True: "decoders run on CUDA in bf16 and fp16 alone, for which their attention has kernels",
    False: "int8 has no CUDA kernels (MatMulIntegerToFloat)",
}
REMEDIES_ON_CUDA = {True: "bf16,fp16", False: "fp16,bf16"}
GIGABYTE = 1e9


@dataclass(frozen=True)
class Site:
    """What a worker offers a model."""

    instruction_set: str
    device: Device = CPU
    is_required: bool = False  # DEVICE names it
    room_bytes: int | None = None  # memory of the host left for this model; None: unknown


@dataclass(frozen=True)
class Choice:
    """A precision on a device, whether all its variants are verified, and the reason it was taken."""

    precision: Precision
    verified: bool
    reason: str
    device: Device = CPU
    needed_bytes: int = 0  # of the host's memory, by estimate; none where a GPU holds the weights


@dataclass(frozen=True)
class _Case:
    """A model at a site; `needs` are bytes of the host's memory by precision."""

    manifest: Manifest
    wanted: Precision | None
    site: Site
    needs: Mapping[Precision, int] = field(default_factory=dict)

    def choice(self, precision: Precision, reason: str, device: Device = CPU) -> Choice:
        verified = _is_verified(self.manifest, precision)
        needed = self.needs.get(precision, 0) if device.kind == Kind.CPU else 0
        return Choice(precision, verified, reason, device, needed)

    def fits(self, precision: Precision) -> bool:
        room = self.site.room_bytes
        return room is None or self.needs.get(precision, 0) <= room


def check_precision(wanted: Precision | None, device: Device) -> None:
    """Refuse a PRECISION for which a device has no kernels at all. Raises ConfigError."""
    if wanted in NOT_ON_CPU and device.kind == Kind.CPU:
        raise ConfigError(
            f"PRECISION is {wanted}, but models run on the CPU here: {NOT_ON_CPU[wanted]}; "
            "use PRECISION=auto, or a GPU"
        )


def choose(
    manifest: Manifest, wanted: Precision | None, site: Site, needs: Mapping[Precision, int] | None = None
) -> tuple[Choice, ...]:
    """List what to try, at least one: precisions on CUDA where that is the device, then one on the CPU.

    `needs` are the bytes that a precision takes of the host's memory. Raises BundleError, with the remedy,
    where nothing can run.
    """
    if wanted is not None and wanted not in manifest.precisions:
        baked = ",".join(manifest.precisions)
        raise BundleError(
            f"{manifest.name} has no precision {wanted} (PRECISION); baked are {baked}: "
            f"{_bake(manifest, baked, wanted)}"
        )
    case = _Case(manifest, wanted, site, needs or {})
    if site.device.kind == Kind.CPU:
        return (_on_cpu(case),)
    on_cuda, refusal = _on_cuda(case)
    if site.is_required:
        if refusal:
            raise BundleError(f"{manifest.name} does not run on {site.device} (DEVICE): {refusal}")
        return on_cuda
    try:
        return (*on_cuda, _on_cpu(case, f"not on {site.device}: {refusal}" if refusal else ""))
    except BundleError:
        if not on_cuda:
            raise
        return on_cuda


def _on_cuda(case: _Case) -> tuple[tuple[Choice, ...], str]:
    """List the precisions to try on CUDA, or say why there are none."""
    manifest, wanted, device = case.manifest, case.wanted, case.site.device
    kind = manifest.is_decoder
    remedy = _bake(manifest, REMEDIES_ON_CUDA[kind])
    if wanted is not None:
        if wanted not in BY_NAME_ON_CUDA[kind]:
            return (), f"{NOT_ON_CUDA[kind]}, PRECISION is {wanted}; {remedy}"
        return (case.choice(wanted, "set by PRECISION", device),), ""
    able = [precision for precision in ON_CUDA[kind] if precision in manifest.precisions]
    if not able:
        return (), f"{NOT_ON_CUDA[kind]}, baked are {','.join(manifest.precisions)}; {remedy}"
    has_verified = any(_is_verified(manifest, precision) for precision in manifest.precisions)
    # What has failed its floor is taken by its name alone; what could not be measured, behind the verified.
    usable = [precision for precision in able if not (has_verified and _has_failed(manifest, precision))]
    if not usable:
        return (), f"{', '.join(able)} are below their floor of quality; PRECISION={able[0]} takes it anyway"
    usable.sort(key=lambda precision: not _is_verified(manifest, precision))  # stable
    model = "a decoder" if kind else "an encoder"
    reasons = {
        True: f"first verified one for {model} on CUDA",
        False: f"not measured; first one for {model} on CUDA",
    }
    return tuple(case.choice(each, reasons[_is_verified(manifest, each)], device) for each in usable), ""


def _on_cpu(case: _Case, prelude: str = "") -> Choice:
    """Choose the precision for the CPU. Raises BundleError where none runs or fits."""
    manifest, wanted = case.manifest, case.wanted
    if wanted in NOT_ON_CPU:
        raise BundleError(
            f"{manifest.name} does not run in {wanted} on the CPU: {NOT_ON_CPU[wanted]}; "
            "use PRECISION=auto, or a GPU"
        )
    able = [precision for precision in manifest.precisions if precision not in NOT_ON_CPU]
    if not able:
        baked = ",".join(manifest.precisions)
        raise BundleError(f"{manifest.name} holds only {baked}, for CUDA: {_bake(manifest, baked, FP32)}")
    verified = [precision for precision in able if _is_verified(manifest, precision)]
    pool = [wanted] if wanted else verified or able
    fitting = [precision for precision in pool if case.fits(precision)]
    if not fitting:
        raise BundleError(_too_large(case, pool, is_verified=bool(verified)))
    too_large = [precision for precision in pool if precision not in fitting]
    precision, reason = _best(case, fitting, is_verified=bool(verified))
    parts = (reason, _left_out(case, too_large) if too_large else "", prelude)
    return case.choice(precision, "; ".join(filter(None, parts)))


def _best(case: _Case, fitting: list[Precision], *, is_verified: bool) -> tuple[Precision, str]:
    """Return the one to take of precisions that run and fit, and why."""
    manifest, instruction_set = case.manifest, case.site.instruction_set
    if case.wanted:
        return case.wanted, "set by PRECISION"
    if not is_verified:
        best = min(fitting, key=BY_ACCURACY.index)
        return best, "none of the precisions for the CPU is verified: the most accurate one"
    speeds = {precision: _speed(manifest, precision, instruction_set) for precision in fitting}
    if all(speeds.values()):
        fastest = max(fitting, key=lambda precision: speeds[precision])
        return fastest, f"fastest verified precision measured on {instruction_set}"
    order = UNMEASURED_WITH_FAST_INT8 if instruction_set in host.FAST_INT8 else BY_ACCURACY
    return min(fitting, key=order.index), f"no speed measured on {instruction_set}: by instruction set"


def _left_out(case: _Case, too_large: list[Precision]) -> str:
    needed = ", ".join(f"{each} ({case.needs[each] / GIGABYTE:.2f} GB)" for each in too_large)
    return f"no memory for {needed}: {max(0, case.site.room_bytes or 0) / GIGABYTE:.2f} GB are left"


def _too_large(case: _Case, pool: list[Precision], *, is_verified: bool) -> str:
    smallest = min(pool, key=lambda precision: case.needs[precision])
    which = (
        ""
        if case.wanted or len(pool) == 1
        else f", its smallest {'verified ' if is_verified else ''}precision"
    )
    needed, room = case.needs[smallest] / GIGABYTE, max(0, case.site.room_bytes or 0) / GIGABYTE
    return (
        f"{case.manifest.name} needs {needed:.2f} GB of memory in {smallest}{which}, but {room:.2f} GB are "
        "left for it in this worker: give the service more memory, or lower WORKERS, or name fewer models in "
        "MODELS_TO_LOAD"
    )


def _bake(manifest: Manifest, *precisions: str) -> str:
    precision = ",".join(precisions)
    return f"bake it with {commands.convert(manifest.name, '--precision', precision, '--force')}"


def _variants(manifest: Manifest, precision: Precision) -> list[Variant]:
    return [
        variant
        for variant in manifest.variants
        if variant.precision == precision and variant.task != BASE_TASK
    ]


def _is_verified(manifest: Manifest, precision: Precision) -> bool:
    return all(variant.verified for variant in _variants(manifest, precision))


def _has_failed(manifest: Manifest, precision: Precision) -> bool:
    """Tell whether a variant was measured and is below its floor."""
    return any(
        not variant.verified and (variant.quality or variant.image_quality or variant.rank_quality)
        for variant in _variants(manifest, precision)
    )


def _speed(manifest: Manifest, precision: Precision, instruction_set: str) -> float:
    """Return the slowest variant's measured tokens per second, 0 where one was not measured here."""
    speeds = [
        variant.speed.tokens_per_second
        if variant.speed and variant.speed.instruction_set == instruction_set
        else 0.0
        for variant in _variants(manifest, precision)
    ]
    return min(speeds)
