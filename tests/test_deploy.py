"""What is deployed: Kubernetes manifests and the compose file, against their schemas and the service."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from falcon.testing import TestClient

from convert import arguments
from convert.catalog import RECIPES
from service import config
from service.config import Settings
from tests import dockerfile, kustomize
from tests.kustomize import Resource
from tests.processes import GUNICORN, PROJECT, environment

DEPLOY = PROJECT / "deploy"
OVERLAYS = [folder.name for folder in sorted((DEPLOY / "overlays").iterdir())]
COMPOSE = yaml.safe_load((PROJECT / "compose.yaml").read_text())
SERVICES = COMPOSE["services"]
ORCHESTRATORS_SHARE = 60  # seconds that may be granted beyond what a stop takes
each_overlay = pytest.mark.parametrize("overlay", OVERLAYS)


@cache
def rendered(overlay: str) -> dict[str, Resource]:
    """Return the resources of an overlay by kind: there is one of each."""
    resources = kustomize.render(DEPLOY / "overlays" / overlay)
    found = {resource["kind"]: resource for resource in resources}
    assert len(found) == len(resources)
    return found


def pod(resource: Resource) -> Any:
    return resource["spec"]["template"]["spec"]


def pods(overlay: str) -> list[Any]:
    return [pod(rendered(overlay)[kind]) for kind in ("Deployment", "Job")]


def containers(overlay: str) -> Iterator[Any]:
    for each in pods(overlay):
        yield from (*each.get("initContainers", ()), *each["containers"])


def serving(overlay: str) -> Any:
    (container,) = pod(rendered(overlay)["Deployment"])["containers"]
    return container


@pytest.fixture(scope="module")
def graceful_timeout(tiny_models: Path) -> int:
    """The seconds that a stop takes at most, as gunicorn has them without any setting."""
    ended = subprocess.run(
        [*GUNICORN, "--print-config"],
        cwd=PROJECT,
        env=environment(MODELS_DIR=str(tiny_models)),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    (seconds,) = re.findall(r"^graceful_timeout\s*= (\d+)$", ended.stdout, re.MULTILINE)
    return int(seconds)


# --- Kubernetes ------------------------------------------------------------------------------------------


@each_overlay
def test_the_manifests_follow_the_schemas(overlay: str) -> None:
    newest = kubernetes_validate.latest_version()
    for resource in rendered(overlay).values():
        kubernetes_validate.validate(resource, newest, strict=True)


@each_overlay
@pytest.mark.skipif(not shutil.which("kubectl"), reason="kubectl is not installed")
def test_kustomize_makes_the_same_of_them(overlay: str) -> None:
    command: list[str | Path] = ["kubectl", "kustomize", DEPLOY / "overlays" / overlay]
    ended = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found = {resource["kind"]: resource for resource in yaml.safe_load_all(ended.stdout)}
    assert sorted_env(found) == sorted_env(rendered(overlay))


def sorted_env(resources: dict[str, Resource]) -> dict[str, Resource]:
    """Return the resources with environments in order: kustomize puts what is patched in first."""
    copy: dict[str, Resource] = yaml.safe_load(yaml.safe_dump(resources))
    for container in pod(copy["Deployment"])["containers"]:
        container["env"].sort(key=lambda variable: variable["name"])
    return copy


@each_overlay
def test_a_stop_has_the_time_it_takes(overlay: str, graceful_timeout: int) -> None:
    _, seconds = serving(overlay)["lifecycle"]["preStop"]["exec"]["command"]
    needed = int(seconds) + graceful_timeout
    granted = pod(rendered(overlay)["Deployment"])["terminationGracePeriodSeconds"]
    assert needed < granted <= needed + ORCHESTRATORS_SHARE


@each_overlay
def test_no_container_may_do_more_than_it_needs(overlay: str) -> None:
    (user,) = dockerfile.stages()["run"].all("USER")
    for each in pods(overlay):
        found = each["securityContext"]
        assert found["runAsNonRoot"] is True
        assert f"{found['runAsUser']}:{found['runAsGroup']}" == user
        assert found["seccompProfile"] == {"type": "RuntimeDefault"}
        assert each["automountServiceAccountToken"] is False
    for container in containers(overlay):
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert container["resources"].keys() == {"requests", "limits"}


@each_overlay
def test_what_is_written_to_is_mounted(overlay: str) -> None:
    stage = dockerfile.stages()["run"]
    (cache_dir,) = re.findall(r"CACHE_DIR=(\S+)", stage.all("ENV")[0])
    (models_dir,) = re.findall(r"MODELS_DIR=(\S+)", stage.all("ENV")[0])
    mounts = {mount["mountPath"]: mount.get("readOnly", False) for mount in serving(overlay)["volumeMounts"]}
    assert mounts == {models_dir: True, cache_dir: False, "/tmp": False}
    job = rendered(overlay)["Job"]
    (convert,) = pod(job)["containers"]
    assert {mount["mountPath"] for mount in convert["volumeMounts"]} == {models_dir, cache_dir, "/tmp"}
    for each in pods(overlay):
        volumes = {volume["name"] for volume in each["volumes"]}
        named = [*each.get("initContainers", ()), *each["containers"]]
        assert {mount["name"] for container in named for mount in container["volumeMounts"]} == volumes


@each_overlay
def test_cores_are_whole_and_granted(overlay: str) -> None:
    """The service starts as many threads as its limit has cores, and takes one for each GPU of its own."""
    found = serving(overlay)["resources"]
    assert found["limits"]["cpu"] == found["requests"]["cpu"]
    assert found["limits"]["cpu"].isdigit()
    assert "WORKERS" not in {variable["name"] for variable in serving(overlay)["env"]}
    assert (found["limits"].get("nvidia.com/gpu") == "1") == (overlay == "gpu")


@each_overlay
def test_probes_ask_routes_that_are_there(overlay: str, client: TestClient) -> None:
    container = serving(overlay)
    (port,) = container["ports"]
    assert str(port["containerPort"]) == str(Settings().port) == dockerfile.stages()["serve"].all("EXPOSE")[0]
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        asked = container[probe]["httpGet"]
        assert asked["port"] == port["name"]
        assert client.simulate_get(asked["path"]).status_code == 200
    notes = rendered(overlay)["Deployment"]["spec"]["template"]["metadata"]["annotations"]
    assert notes["prometheus.io/port"] == str(port["containerPort"])
    assert client.simulate_get(notes["prometheus.io/path"]).status_code == 200
    (published,) = rendered(overlay)["Service"]["spec"]["ports"]
    assert published["targetPort"] == port["name"]


@each_overlay
def test_the_environment_is_of_settings(overlay: str) -> None:
    given = {variable["name"]: variable.get("value", "") for variable in serving(overlay)["env"]}
    assert given.keys() <= config.VARIABLES.keys()
    assert config.from_environment(given).device.kind == {"cpu": "cpu", "gpu": "cuda"}[overlay]


@each_overlay
def test_what_is_baked_is_waited_for_and_loaded(overlay: str) -> None:
    (convert,) = pod(rendered(overlay)["Job"])["containers"]
    wanted = arguments.parser().parse_args(convert["args"])
    (waiting,) = pod(rendered(overlay)["Deployment"])["initContainers"]
    (awaited,) = re.findall(r"for model in ([^;]+);", waiting["args"][0])
    given = {variable["name"]: variable.get("value", "") for variable in serving(overlay)["env"]}
    assert wanted.models == awaited.split() == given["MODELS_TO_LOAD"].split(",")
    assert set(wanted.models) <= RECIPES.keys()
    assert str(wanted.out) == "/models"


def test_a_replica_waits_for_its_bundle(tmp_path: Path) -> None:
    (waiting,) = pod(rendered("cpu")["Deployment"])["initContainers"]
    command = [*waiting["command"], waiting["args"][0].replace("/models", str(tmp_path))]
    with pytest.raises(subprocess.TimeoutExpired):
        subprocess.run(command, timeout=0.2)
    for model in RECIPES:
        (tmp_path / model).mkdir()
        (tmp_path / model / "manifest.json").touch()
    subprocess.run(command, check=True, timeout=10)


@each_overlay
def test_selectors_find_the_replicas_alone(overlay: str) -> None:
    found = rendered(overlay)
    labels = found["Deployment"]["spec"]["template"]["metadata"]["labels"]
    (spread,) = pod(found["Deployment"])["topologySpreadConstraints"]
    selectors = [
        found["Deployment"]["spec"]["selector"]["matchLabels"],
        found["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
        found["Service"]["spec"]["selector"],
        spread["labelSelector"]["matchLabels"],
    ]
    assert all(selector == labels for selector in selectors)
    assert found["Job"]["spec"]["template"]["metadata"]["labels"] != labels
    target = found["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) == kustomize.identity(found["Deployment"])
    assert "replicas" not in found["Deployment"]["spec"], "the autoscaler has the number"


# --- compose ---------------------------------------------------------------------------------------------


def test_the_compose_file_follows_the_schema() -> None:
    """The schema of the Compose specification is part of check-jsonschema."""
    command = ["-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", "compose.yaml"]
    subprocess.run([sys.executable, *command], cwd=PROJECT, check=True)


def test_stages_and_images_of_compose_are_those_of_the_cluster() -> None:
    stages = dockerfile.stages()
    accelerators = {
        "jina-onnx-server": None,
        "jina-onnx-server-cuda": "cuda",
        "jina-onnx-server-convert": None,
    }
    for service in SERVICES.values():
        build = service["build"]
        assert build["target"] in stages
        assert build.get("args", {}).get("ACCELERATOR") == accelerators[service["image"]]
    built = {service["image"] for service in SERVICES.values()}
    deployed = {container["image"] for overlay in OVERLAYS for container in containers(overlay)}
    assert built == deployed == accelerators.keys()


@pytest.mark.parametrize("profile", ["cpu", "gpu"])
def test_each_profile_bakes_and_then_serves(profile: str, graceful_timeout: int) -> None:
    chosen = {name: service for name, service in SERVICES.items() if profile in service["profiles"]}
    convert, serve = sorted(chosen.values(), key=lambda service: "depends_on" in service)
    assert len(chosen) == 2
    ((needed, how),) = serve["depends_on"].items()
    assert SERVICES[needed] is convert
    assert how == {"condition": "service_completed_successfully"}
    seconds = int(serve["stop_grace_period"].removesuffix("s"))
    assert graceful_timeout < seconds <= graceful_timeout + ORCHESTRATORS_SHARE
    assert "models:/models:ro" in serve["volumes"]
    for service in (convert, serve):
        assert service["read_only"] is True
        assert (service["tmpfs"], service["cap_drop"]) == (["/tmp"], ["ALL"])
    given = {name: unset(value) for name, value in serve["environment"].items()}
    assert given.keys() <= config.VARIABLES.keys()
    assert config.from_environment(given).device.kind == {"cpu": "cpu", "gpu": "cuda"}[profile]
    wanted = arguments.parser().parse_args(unset(convert["command"]).split())
    assert set(wanted.models) <= RECIPES.keys()
    assert str(wanted.out) == "/models"


def unset(text: str) -> str:
    """Return what compose makes of a text where none of its variables is set."""
    return re.sub(r"\$\{[A-Z]+:-([^}]*)\}", r"\1", text)
