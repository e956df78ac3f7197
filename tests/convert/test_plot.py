"""The drawing of speed and quality."""

from __future__ import annotations

import builtins
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from convert import plot
from convert.__main__ import main
from service import manifest as contract
from service.errors import BakeError
from service.manifest import Precision
from tests.conftest import MODEL


def test_verify_draws_beside_the_bundle(
    tiny_models: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "models"
    out.mkdir()
    (out / MODEL).symlink_to(tiny_models / MODEL)
    main(["verify", MODEL, "--out", str(out), "--plot"])  # its status is that of the figures
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1 << 20)  # the service's own decoder sets a lower one
    with Image.open(out / f"{MODEL}.png") as drawn:
        assert drawn.format == "PNG"
        colours = {colour for _, colour in drawn.convert("RGB").getcolors(1 << 20) or ()}
    assert len(colours) > 20
    assert f"drawn in {out / MODEL}.png" in capsys.readouterr().out


def test_points_are_relative_to_fp32_of_their_task(tiny_models: Path) -> None:
    points = {point.label: point for point in plot.points_of(contract.load(tiny_models / MODEL))}
    assert set(points) == {Precision.FP32, Precision.INT8, Precision.INT8_BLOCK}
    assert points[Precision.FP32].speed == 1
    assert points[Precision.FP32].loss == plot.SMALLEST_LOSS
    assert points[Precision.INT8].loss > plot.SMALLEST_LOSS


def test_nothing_to_draw_and_no_matplotlib_say_so(
    tiny_models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = contract.load(tiny_models / MODEL)
    with pytest.raises(BakeError, match="nothing to draw"):
        plot.speed_quality(replace(manifest, variants=manifest.variants[:1]), tmp_path / "x.png")
    original = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return original(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(BakeError, match="pip install matplotlib"):
        plot.speed_quality(manifest, tmp_path / "x.png")
