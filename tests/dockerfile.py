"""The Dockerfile as stages, and its installing lines run as they stand, in another place."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from dockerfile_parse import DockerfileParser

from tests.processes import PROJECT

PATH = PROJECT / "Dockerfile"
VENV, FROM_STAGE = "/opt/venv", "--from="


@dataclass
class Stage:
    """A stage; `base` is another one's name or an image."""

    name: str
    base: str
    instructions: list[tuple[str, str]] = field(default_factory=list)  # keyword, rest

    def all(self, keyword: str) -> list[str]:
        return [rest for found, rest in self.instructions if found == keyword]

    def words(self, keyword: str) -> list[str]:
        """Return the words of the one instruction in exec form; of a HEALTHCHECK those of its command."""
        (rest,) = self.all(keyword)
        found = json.loads(rest[rest.index("[") :])
        assert isinstance(found, list)
        return [str(word) for word in found]


def stages() -> dict[str, Stage]:
    """Read the stages, in order."""
    found: dict[str, Stage] = {}
    for line in DockerfileParser(str(PATH)).structure:
        if line["instruction"] == "FROM":
            base, _, name = line["value"].split()
            found[name] = Stage(name, base)
        elif found:
            list(found.values())[-1].instructions.append((line["instruction"], line["value"]))
    return found


def defaults(stage: Stage) -> dict[str, str]:
    """Return the build arguments of a stage with their values."""
    return dict(argument.split("=", 1) for argument in stage.all("ARG"))


def copy_sources(stage: Stage, folder: Path) -> Path:
    """Do what the COPY lines do that take files of the project; `folder` is the working directory."""
    for line in stage.all("COPY"):
        *sources, target = line.split()
        if line.startswith(FROM_STAGE):
            continue
        for source in sources:
            if (PROJECT / source).is_dir():
                ignored = shutil.ignore_patterns("__pycache__")
                shutil.copytree(PROJECT / source, folder / target, ignore=ignored)
            else:
                shutil.copy(PROJECT / source, folder / target)
    return folder


def run(stage: Stage, sources: Path, venv: Path, **arguments: str) -> None:
    """Run the RUN lines of a stage with the environment in another place, by the Python of the tests."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    for line in stage.all("RUN"):
        subprocess.run(
            ["sh", "-ec", line.replace(VENV, str(venv))],
            cwd=sources,
            env=os.environ | defaults(stage) | arguments | {"PATH": path},
            check=True,
        )
