"""Which precision of a bundle serves here, and why. Pure; knows the manifest and the instruction set."""

from __future__ import annotations

from dataclasses import dataclass

from service import host
from service.errors import BundleError
from service.manifest import BASE_TASK, Manifest, Precision, Variant

# Used where a bundle has no verified precision, or no speed was measured and 8 bits are not fast.
BY_ACCURACY = (Precision.FP32, Precision.INT8_BLOCK, Precision.INT8)
# Used where the bake measured no speed on this instruction set.
UNMEASURED_WITH_FAST_INT8 = (Precision.INT8, Precision.FP32, Precision.INT8_BLOCK)


@dataclass(frozen=True)
class Choice:
    """A precision, whether all its variants are verified, and the reason it was taken."""

    precision: Precision
    verified: bool
    reason: str


def choose(manifest: Manifest, wanted: Precision | None, instruction_set: str) -> Choice:
    """Choose the precision to serve. Raises BundleError when the wanted one was not baked."""
    if wanted is not None:
        if wanted not in manifest.precisions:
            baked = ",".join(manifest.precisions)
            raise BundleError(
                f"{manifest.name} has no precision {wanted} (PRECISION); baked are {baked}: "
                f"bake it with python -m convert {manifest.name} --precision {baked},{wanted} --force"
            )
        return Choice(wanted, _is_verified(manifest, wanted), "set by PRECISION")
    verified = [precision for precision in manifest.precisions if _is_verified(manifest, precision)]
    if not verified:
        best = min(manifest.precisions, key=BY_ACCURACY.index)
        return Choice(best, False, "no precision of this bundle is verified: the most accurate one")
    speeds = {precision: _speed(manifest, precision, instruction_set) for precision in verified}
    if all(speeds.values()):
        fastest = max(verified, key=lambda precision: speeds[precision])
        return Choice(fastest, True, f"fastest verified precision measured on {instruction_set}")
    order = UNMEASURED_WITH_FAST_INT8 if instruction_set in host.FAST_INT8 else BY_ACCURACY
    return Choice(
        min(verified, key=order.index), True, f"no speed measured on {instruction_set}: by instruction set"
    )


def _variants(manifest: Manifest, precision: Precision) -> list[Variant]:
    return [
        variant
        for variant in manifest.variants
        if variant.precision == precision and variant.task != BASE_TASK
    ]


def _is_verified(manifest: Manifest, precision: Precision) -> bool:
    return all(variant.verified for variant in _variants(manifest, precision))


def _speed(manifest: Manifest, precision: Precision, instruction_set: str) -> float:
    """Return the slowest variant's measured tokens per second, 0 where one was not measured here."""
    speeds = [
        variant.speed.tokens_per_second
        if variant.speed and variant.speed.instruction_set == instruction_set
        else 0.0
        for variant in _variants(manifest, precision)
    ]
    return min(speeds)
