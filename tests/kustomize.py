"""As much of kustomize as deploy/ uses: resources, strategic patches, names of images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

Resource = dict[str, Any]
USED = {"apiVersion", "kind", "resources", "patches", "images"}


def render(folder: Path) -> list[Resource]:
    """Return the resources of a kustomization."""
    (wanted,) = read(folder / "kustomization.yaml")
    assert not wanted.keys() - USED, f"tests/kustomize.py knows {USED}"
    found: list[Resource] = []
    for name in wanted["resources"]:
        path = folder / name
        found += render(path) if path.is_dir() else read(path)
    for patch in wanted.get("patches", ()):
        (change,) = read(folder / patch["path"])
        (place,) = [place for place, resource in enumerate(found) if identity(resource) == identity(change)]
        found[place] = merged(found[place], change)
    names = {image["name"]: image["newName"] for image in wanted.get("images", ())}
    return [renamed(resource, names) for resource in found]


def read(path: Path) -> list[Resource]:
    """Read the documents of a file."""
    return [document for document in yaml.safe_load_all(path.read_text(encoding="utf-8")) if document]


def identity(resource: Resource) -> tuple[str, str]:
    """Return what tells a resource from all others here."""
    return resource["kind"], resource["metadata"]["name"]


def merged(base: Any, change: Any) -> Any:
    """Merge mappings by key and lists of named things by name; anything else is replaced."""
    if isinstance(base, dict) and isinstance(change, dict):
        both = {key: merged(base[key], change[key]) for key in base.keys() & change.keys()}
        return {**base, **change, **both}
    if isinstance(base, list) and all("name" in item for item in (*base, *change)):
        named = merged(by_name(base), by_name(change))
        return list(named.values())
    return change


def by_name(items: list[Resource]) -> dict[str, Resource]:
    """Return named things by their names."""
    return {item["name"]: item for item in items}


def renamed(node: Any, images: dict[str, str]) -> Any:
    """Replace names of images wherever they are."""
    if isinstance(node, list):
        return [renamed(item, images) for item in node]
    if isinstance(node, dict):
        return {
            key: images.get(value, value) if key == "image" else renamed(value, images)
            for key, value in node.items()
        }
    return node
