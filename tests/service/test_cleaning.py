"""What is removed from the cache, and above all what is not."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from service import cleaning, prepacking
from service.cleaning import OWNER_FILE, Owner
from service.providers import RUNTIME_VERSION

KEY, OTHER_KEY, OLD_KEY = f"{RUNTIME_VERSION}-avx2", f"{RUNTIME_VERSION}-amx_int8", "1.0.0-avx2"
NEW, OLD = "1" * 64, "0" * 64


@pytest.fixture
def owner(tmp_path: Path) -> Owner:
    """The bundle whose copy is about to be made."""
    bundle = tmp_path / "models" / "model"
    bundle.mkdir(parents=True)
    return Owner("model", str(bundle))


def copies_at(folder: Path, owner: Owner) -> Path:
    (folder / "fp32").mkdir(parents=True)
    (folder / "fp32" / "model.onnx").write_bytes(b"graph")
    owner.write(folder)
    return folder


def clean(cache: Path, owner: Owner) -> list[OSError]:
    return list(cleaning.clean(cache, cache / KEY / NEW, owner))


@pytest.mark.parametrize(
    ("key", "digest", "is_kept"),
    [
        (KEY, NEW, True),
        (OTHER_KEY, NEW, True),
        (OLD_KEY, NEW, False),
        (KEY, OLD, False),
        (OTHER_KEY, OLD, False),
    ],
)
def test_copies_of_the_same_bundle_stay_for_other_hosts_of_this_version(
    tmp_path: Path, owner: Owner, key: str, digest: str, is_kept: bool
) -> None:
    cache = tmp_path / "cache"
    folder = copies_at(cache / key / digest, owner)
    assert clean(cache, owner) == []
    assert folder.exists() == folder.parent.exists() == is_kept


@pytest.mark.parametrize(
    ("model", "models", "is_there", "is_kept"),
    [
        ("other", "models", True, True),
        ("other", "models", False, False),
        ("other", "elsewhere", False, True),
        ("model", "elsewhere", True, True),
        ("model", "elsewhere", False, False),
    ],
)
def test_copies_of_a_bundle_that_is_gone_are_removed_where_that_can_be_told(
    tmp_path: Path, owner: Owner, model: str, models: str, is_there: bool, is_kept: bool
) -> None:
    cache, bundle = tmp_path / "cache", tmp_path / models / model
    if is_there:
        bundle.mkdir(parents=True)
    folder = copies_at(cache / KEY / OLD, Owner(model, str(bundle)))
    assert clean(cache, owner) == []
    assert folder.exists() == is_kept


def test_what_is_not_the_caches_stays(tmp_path: Path, owner: Owner) -> None:
    cache = tmp_path / "cache"
    linked = copies_at(tmp_path / "linked" / OLD, owner)
    (cache / "empty").mkdir(parents=True)
    (cache / "others" / "folder" / prepacking.STAGING).mkdir(parents=True)
    (cache / "link").symlink_to(linked.parent)
    (cache / KEY).mkdir()
    (cache / KEY / OLD).symlink_to(linked)
    before = sorted(cache.rglob("*"))
    assert clean(cache, owner) == []
    assert sorted(cache.rglob("*")) == before
    assert (linked / OWNER_FILE).exists()


def test_what_a_maker_left_is_removed(tmp_path: Path, owner: Owner) -> None:
    cache = tmp_path / "cache"
    for folder in (copies_at(cache / KEY / NEW, owner), copies_at(cache / OTHER_KEY / NEW, owner)):
        (folder / prepacking.STAGING).mkdir()
    assert clean(cache, owner) == []
    assert not list(cache.rglob(prepacking.STAGING))


def test_what_cannot_be_removed_is_told_and_removed_another_time(
    tmp_path: Path, owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    first, second = (copies_at(cache / key / OLD, owner) for key in (KEY, OTHER_KEY))
    remove = shutil.rmtree

    def refuse(path: Path) -> None:
        if path.is_relative_to(first):
            raise OSError(39, "Directory not empty", str(path))
        remove(path)

    monkeypatch.setattr(shutil, "rmtree", refuse)
    (error,) = clean(cache, owner)
    assert error.errno == 39
    assert not second.exists()
    monkeypatch.undo()
    assert clean(cache, owner) == []
    assert not first.exists()
