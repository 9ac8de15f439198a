"""The files under deploy/: valid, safe, of one mind with the server's flags, and what they start answers."""

from __future__ import annotations

import http.client
import importlib.metadata
import io
import json
import os
import re
import secrets
import shlex
import shutil
import signal
import ssl
import subprocess
import sys
import tomllib
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import grpc
import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import trustme
import tyro
import yaml
from dockerfile_parse import DockerfileParser  # type: ignore[import-untyped]

from chunkcast.client.private_server import PrivateServer, private_server
from chunkcast.server.config import ServeConfig
from chunkcast.v1 import policy_pb2 as pb
from chunkcast.v1 import policy_pb2_grpc as pb_grpc
from tests.conftest import ROOT, SHIPPED_BUNDLE

DEPLOY = ROOT / "deploy"
DOCKER = DEPLOY / "docker"
SYSTEMD = DEPLOY / "systemd"
KUBERNETES = DEPLOY / "kubernetes"
GUIDE = (ROOT / "docs" / "deploying.md").read_text()

EXECUTABLE = "/opt/chunkcast/bin/chunkcast-serve"
GRPC_PORT, METRICS_PORT = 50051, 9100
PROGRAMS = Path(sys.executable).parent

# The sleep action of preStop came with 1.30.
KUBERNETES_VERSIONS = ("1.30", kubernetes_validate.latest_version())


# ---------------------------------------------------------------------------------------------------- what is written


def documents(text: str) -> list[dict[str, Any]]:
    return [each for each in yaml.safe_load_all(text) if each]


def rendered(folder: str) -> list[dict[str, Any]]:
    """What ``kubectl apply -k`` would send."""
    kubectl = shutil.which("kubectl")
    if not kubectl:
        pytest.skip("kubectl is not installed: it renders kustomizations")
    command = [kubectl, "kustomize", str(KUBERNETES / folder)]
    return documents(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def of_kind(kind: str, among: list[dict[str, Any]]) -> dict[str, Any]:
    (found,) = [each for each in among if each["kind"] == kind]
    return found


BASE = [
    document
    for file in sorted((KUBERNETES / "base").glob("*.yaml"))
    if file.name != "kustomization.yaml"
    for document in documents(file.read_text())
]
WRITER = documents((KUBERNETES / "store-writer.yaml").read_text())
MONITOR = of_kind("ServiceMonitor", documents((KUBERNETES / "monitoring" / "servicemonitor.yaml").read_text()))
DEPLOYMENT, SERVICE = of_kind("Deployment", BASE), of_kind("Service", BASE)


def pod_of(document: dict[str, Any]) -> dict[str, Any]:
    pod: dict[str, Any] = document["spec"] if document["kind"] == "Pod" else document["spec"]["template"]["spec"]
    return pod


def server_container(deployment: dict[str, Any]) -> dict[str, Any]:
    (container,) = pod_of(deployment)["containers"]
    assert isinstance(container, dict)
    return container


@dataclass(frozen=True)
class Stage:
    """A stage of the Dockerfile.

    Attributes:
        base: an image, or another stage.
        lines: instructions and their values, in order.
    """

    base: str
    lines: list[tuple[str, str]]

    def last(self, instruction: str) -> str:
        return [value for name, value in self.lines if name == instruction][-1]

    def command(self, instruction: str) -> list[str]:
        """The words of an instruction in exec form, which runs without a shell: signals reach the server."""
        words = json.loads(self.last(instruction))
        assert isinstance(words, list)
        return [str(word) for word in words]

    def environment(self) -> dict[str, str]:
        pairs = [word.split("=", 1) for name, value in self.lines if name == "ENV" for word in shlex.split(value)]
        return {pair[0]: pair[1] for pair in pairs}


def read_stages() -> dict[str, Stage]:
    parser = DockerfileParser(fileobj=io.BytesIO((DOCKER / "Dockerfile").read_bytes()))
    stages: dict[str, Stage] = {}
    for line in parser.structure:
        instruction, value = line["instruction"], line["value"]
        if instruction == "FROM":
            base, keyword, name = value.split()
            assert keyword == "AS"
            stages[name] = Stage(base, [])
        elif instruction != "COMMENT":
            stages[list(stages)[-1]].lines.append((instruction, value))
    return stages


STAGES = read_stages()
TARGETS = ("cpu", "cuda")


def unit_settings(*files: Path) -> list[tuple[str, str]]:
    """A unit's settings with those of its drop-ins, in order."""
    text = "\n".join(file.read_text() for file in files)
    lines = [line for line in text.splitlines() if not line.startswith(("#", ";"))]
    joined = "\n".join(lines).replace("\\\n", " ")
    pairs = [line.partition("=") for line in joined.splitlines() if "=" in line]
    return [(name, value.strip()) for name, _, value in pairs]


def unit_value(name: str, *drop_ins: str) -> str:
    settings = unit_settings(SYSTEMD / "chunkcast.service", *(SYSTEMD / each for each in drop_ins))
    return [value for key, value in settings if key == name][-1]


def unit_environment(*drop_ins: str) -> dict[str, str]:
    files = (SYSTEMD / "chunkcast.service", *(SYSTEMD / each for each in drop_ins))
    words = [word for name, value in unit_settings(*files) if name == "Environment" for word in shlex.split(value)]
    # A file of settings wins over the unit and its drop-ins.
    words += [
        word
        for line in (SYSTEMD / "chunkcast.env").read_text().splitlines()
        if line and not line.startswith("#")
        for word in shlex.split(line)
    ]
    return dict(word.split("=", 1) for word in words)


def unit_arguments(*drop_ins: str) -> list[str]:
    """ExecStart as systemd expands it: ``$NAME`` becomes words, ``${NAME}`` a part of its word."""
    environment = unit_environment(*drop_ins)
    program, *words = unit_value("ExecStart", *drop_ins).split()
    assert program == EXECUTABLE
    arguments: list[str] = []
    for word in words:
        if re.fullmatch(r"\$\w+", word):
            arguments += environment[word[1:]].split()
        else:
            arguments.append(re.sub(r"\$\{(\w+)\}", lambda match: environment[match[1]], word))
    return arguments


# ------------------------------------------------------------------------------------------------------------- flags


@dataclass(frozen=True)
class Place:
    """Folders with what a server needs, in place of those that the files under deploy/ name."""

    store: Path
    secrets: Path
    robot_token: str
    prometheus_token: str
    authority: bytes

    def arguments(self, written: list[str]) -> list[str]:
        here = {"/srv/policies": str(self.store), "/etc/chunkcast": str(self.secrets), "%d": str(self.secrets)}
        replaced = []
        for argument in written:
            for there, folder in here.items():
                argument = argument.replace(there, folder)  # noqa: PLW2901
            replaced.append(argument)
        return replaced


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("chunkcast")
    authority = trustme.CA()
    certificate = authority.issue_cert("chunkcast", "localhost", "127.0.0.1")
    certificate.private_key_pem.write_to_path(folder / "tls.key")
    (folder / "tls.crt").write_bytes(b"".join(blob.bytes() for blob in certificate.cert_chain_pems))
    robot, operator, prometheus = (secrets.token_urlsafe() for _ in range(3))
    (folder / "tokens").write_text(f"arm-1 {robot}\n")
    (folder / "admin-tokens").write_text(f"operator {operator}\nprometheus {prometheus}\n")
    # What the guide's chunkcast-admin is given; the server does not read them.
    (folder / "operator-token").write_text(f"operator {operator}\n")
    authority.cert_pem.write_to_path(folder / "ca.crt")
    return Place(ROOT / "policies", folder, robot, prometheus, authority.cert_pem.bytes())


WAYS: dict[str, Callable[[], list[str]]] = {
    "docker cpu": lambda: STAGES["cpu"].command("CMD"),
    "docker cuda": lambda: STAGES["cuda"].command("CMD"),
    "kubernetes": lambda: server_container(DEPLOYMENT)["args"],
    "kubernetes gpu": lambda: server_container(of_kind("Deployment", rendered("gpu")))["args"],
    "systemd": unit_arguments,
    "systemd gpu": lambda: unit_arguments("gpu.conf"),
    "systemd credentials": lambda: unit_arguments("credentials.conf"),
}


@pytest.mark.parametrize("way", WAYS)
def test_flags_are_the_servers(way: str, place: Place) -> None:
    config = tyro.cli(ServeConfig, args=place.arguments(WAYS[way]()))
    assert config.store == place.store
    assert config.watch
    assert not config.insecure
    assert (config.listen, config.metrics_listen) == (f"0.0.0.0:{GRPC_PORT}", f"0.0.0.0:{METRICS_PORT}")
    assert config.admin_listen == "127.0.0.1:50052"
    files = (config.tls_cert, config.tls_key, config.token_file, config.admin_token_file)
    assert [file.parent if file else None for file in files] == [place.secrets] * 4
    assert all(file and file.is_file() for file in files)
    assert config.log_format == "json"
    gpu = ("cuda", "cpu")
    expected = {"docker cpu": ("cpu",), "kubernetes": ("auto",), "systemd": ("cpu",), "systemd credentials": ("cpu",)}
    assert config.providers == expected.get(way, gpu)


def test_a_wrong_flag_is_noticed(place: Place) -> None:
    """The test above could not fail otherwise."""
    with pytest.raises(SystemExit):
        tyro.cli(ServeConfig, args=place.arguments([*STAGES["cpu"].command("CMD"), "--no-such-flag", "1"]))


# ------------------------------------------------------------------------------------------------- a server so started


NO_NEW_CODE = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(65, 1, 0, 0, 0)  # PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN; -1 on kernels before 6.3
os.execv(sys.executable, [sys.executable, "-m", "chunkcast.server.cli", *sys.argv[1:]])
"""


@dataclass(frozen=True)
class Deployed:
    """A server started with the Deployment's flags and the image's environment, in a home folder of its own."""

    process: subprocess.Popen[str]
    grpc_address: str
    page: str
    home: Path


@pytest.fixture(scope="module")
def deployed(place: Place, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    home = tmp_path_factory.mktemp("home")
    written = [re.sub(r"(listen=).*", r"\g<1>127.0.0.1:0", word) for word in server_container(DEPLOYMENT)["args"]]
    # Nothing of this process's: where CI is set, ONNX Runtime tells nobody anything.
    environment = {**STAGES["cpu"].environment(), "PATH": os.environ["PATH"], "HOME": str(home)}
    log = home.parent / "deployed.log"
    with log.open("w") as stderr:
        process = subprocess.Popen(
            # As the unit's MemoryDenyWriteExecute has it: no memory becomes code.
            [sys.executable, "-c", NO_NEW_CODE, *place.arguments(written)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )
    try:
        assert process.stdout is not None
        ready = process.stdout.readline().split()
        assert ready[:1] == ["ready"], log.read_text()
        addresses = dict(item.split("=", 1) for item in ready[1:])
        yield Deployed(process, addresses["grpc"], addresses["metrics"], home)
    finally:
        process.kill()
        process.communicate()


def get(address: str, path: str, headers: Mapping[str, str] | None = None) -> int:
    """The status of an answer over HTTPS; the certificate is not verified, as the kubelet does."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    request = urllib.request.Request(f"https://{address}{path}", headers=dict(headers or {}))
    try:
        with urllib.request.urlopen(request, timeout=10, context=context) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        error.close()
        return error.code


def test_probes_ask_what_the_server_answers(deployed: Deployed) -> None:
    container = server_container(DEPLOYMENT)
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"grpc": GRPC_PORT, "metrics": METRICS_PORT}
    probes = [container[f"{kind}Probe"]["httpGet"] for kind in ("startup", "readiness", "liveness")]
    for probe in probes:
        assert (probe["scheme"], ports[probe["port"]]) == ("HTTPS", METRICS_PORT)
        assert get(deployed.page, probe["path"]) == http.client.OK, probe
    assert get(deployed.page, "/no-such-page") != http.client.OK


def test_prometheus_is_let_in_with_its_token_only(deployed: Deployed, place: Place) -> None:
    (endpoint,) = MONITOR["spec"]["endpoints"]
    assert (endpoint["scheme"], endpoint["authorization"]["type"]) == ("https", "Bearer")
    assert get(deployed.page, endpoint["path"]) == http.client.UNAUTHORIZED
    shown = {"Authorization": f"Bearer {place.prometheus_token}"}
    assert get(deployed.page, endpoint["path"], shown) == http.client.OK


def test_a_robot_is_let_in_with_its_token_only(deployed: Deployed, place: Place) -> None:
    """Under the name of the Service."""
    options = [("grpc.ssl_target_name_override", SERVICE["metadata"]["name"]), ("grpc.enable_http_proxy", 0)]
    credentials = grpc.ssl_channel_credentials(place.authority)
    with grpc.secure_channel(deployed.grpc_address, credentials, options=options) as channel:
        stub = pb_grpc.PolicyServiceStub(channel)
        with pytest.raises(grpc.RpcError) as refused:
            stub.ListPolicies(pb.ListPoliciesRequest(), timeout=10)
        assert isinstance(refused.value, grpc.Call)
        assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED
        shown = [("authorization", f"Bearer {place.robot_token}")]
        policies = stub.ListPolicies(pb.ListPoliciesRequest(), timeout=10, metadata=shown).policies
    assert len(policies) == len(list(place.store.glob("*/policy.json")))


def healthcheck(address: str) -> int:
    command = [sys.executable, str(DOCKER / "healthcheck.py"), address]
    return subprocess.run(command, capture_output=True, timeout=30, check=False).returncode


def test_healthcheck(deployed: Deployed, shipped_server: PrivateServer) -> None:
    assert healthcheck(deployed.page) == 0
    assert healthcheck(shipped_server.metrics_address) == 0, "without TLS"
    assert healthcheck(shipped_server.address) == 1, "answers, but no HTTP"
    assert healthcheck("127.0.0.1:1") == 1


def test_it_drains_on_its_signal_and_writes_nothing(deployed: Deployed) -> None:
    """The last with this server. The root file system may be read-only, and nothing is told to ONNX Runtime's maker,
    which keeps what it could not send yet in the home folder.
    """
    assert {STAGES[target].last("STOPSIGNAL") for target in TARGETS} | {unit_value("KillSignal")} == {"SIGTERM"}
    deployed.process.send_signal(signal.SIGTERM)
    assert deployed.process.wait(60) == 0
    assert list(deployed.home.rglob("*")) == []
    assert unit_environment()["ORT_DISABLE_TELEMETRY"] == STAGES["cuda"].environment()["ORT_DISABLE_TELEMETRY"] == "1"


def test_stopping_leaves_time_to_drain(place: Place) -> None:
    drain = tyro.cli(ServeConfig, args=place.arguments(unit_arguments())).drain_seconds
    assert float(unit_value("TimeoutStopSec")) > drain + 5
    docker = re.search(r"--stop-timeout (\d+)", GUIDE)
    assert docker
    assert float(docker[1]) > drain + 5
    args = server_container(DEPLOYMENT)["args"]
    drain = tyro.cli(ServeConfig, args=place.arguments(args)).drain_seconds
    pre_stop = server_container(DEPLOYMENT)["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pod_of(DEPLOYMENT)["terminationGracePeriodSeconds"] > pre_stop + drain + 5


# -------------------------------------------------------------------------------------------------------- Kubernetes


@pytest.mark.parametrize("version", KUBERNETES_VERSIONS)
@pytest.mark.parametrize("where", ["base as written", "base", "gpu", "store-writer"])
def test_manifests_follow_the_schema(where: str, version: str) -> None:
    written = {"base as written": BASE, "store-writer": WRITER}
    manifests = written[where] if where in written else rendered(where)
    assert manifests
    for manifest in manifests:
        kubernetes_validate.validate(manifest, version, strict=True)
        assert "namespace" not in manifest["metadata"]


def test_the_schema_finds_a_typing_error() -> None:
    wrong = {**SERVICE, "spec": {**SERVICE["spec"], "clusterIp": "None"}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, KUBERNETES_VERSIONS[-1], strict=True)


def test_the_kustomizations_have_every_manifest() -> None:
    assert sorted(document["kind"] for document in rendered("base")) == sorted(document["kind"] for document in BASE)
    for folder, tag in (("base", "-cpu"), ("gpu", "-cuda")):
        assert server_container(of_kind("Deployment", rendered(folder)))["image"] == f"chunkcast:{version()}{tag}"
    (writer,) = WRITER
    assert pod_of(writer)["containers"][0]["image"] == f"chunkcast:{version()}-cpu"


def version() -> str:
    found = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert isinstance(found, str)
    return found


def test_gpu_asks_for_one() -> None:
    limits = server_container(of_kind("Deployment", rendered("gpu")))["resources"]["limits"]
    assert limits["nvidia.com/gpu"] == "1"
    assert "nvidia.com/gpu" not in server_container(DEPLOYMENT)["resources"]["limits"]


@pytest.mark.parametrize("where", ["base", "gpu", "store-writer"])
def test_pods_keep_to_the_restricted_profile(where: str) -> None:
    """Kubernetes' Pod Security Standards, and a root file system that cannot be written."""
    pod = pod_of(WRITER[0] if where == "store-writer" else of_kind("Deployment", rendered(where)))
    security = pod["securityContext"]
    assert security["runAsNonRoot"] is True
    assert security["runAsUser"] == security["fsGroup"] == int(STAGES["cpu"].last("USER").split(":")[0])
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not {"hostNetwork", "hostPID", "hostIPC", "initContainers", "ephemeralContainers"} & set(pod)
    assert pod["automountServiceAccountToken"] is False
    for container in pod["containers"]:
        context = container["securityContext"]
        assert context["allowPrivilegeEscalation"] is False
        assert context["readOnlyRootFilesystem"] is True
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert "privileged" not in context
        assert not any("hostPort" in port for port in container.get("ports", []))
        assert "memory" in container["resources"]["limits"]
        mounted = {mount["name"] for mount in container["volumeMounts"]}
        assert mounted == {volume["name"] for volume in pod["volumes"]}
        assert not any("subPath" in mount for mount in container["volumeMounts"]), "it is not renewed"
    allowed = {
        "configMap",
        "csi",
        "downwardAPI",
        "emptyDir",
        "ephemeral",
        "persistentVolumeClaim",
        "projected",
        "secret",
    }
    assert {key for volume in pod["volumes"] for key in volume if key != "name"} <= allowed


def test_the_policies_are_mounted_read_only() -> None:
    mounts = {mount["mountPath"]: mount for mount in server_container(DEPLOYMENT)["volumeMounts"]}
    assert {"/srv/policies", "/etc/chunkcast", "/tmp"} == set(mounts)
    assert mounts["/srv/policies"]["readOnly"]
    assert mounts["/etc/chunkcast"]["readOnly"]


def test_everything_selects_the_servers() -> None:
    template = DEPLOYMENT["spec"]["template"]
    labels, ports = template["metadata"]["labels"], {port["name"] for port in server_container(DEPLOYMENT)["ports"]}
    policy, budget = of_kind("NetworkPolicy", BASE)["spec"], of_kind("PodDisruptionBudget", BASE)["spec"]
    selectors = [
        DEPLOYMENT["spec"]["selector"]["matchLabels"],
        SERVICE["spec"]["selector"],
        policy["podSelector"]["matchLabels"],
        budget["selector"]["matchLabels"],
        pod_of(DEPLOYMENT)["topologySpreadConstraints"][0]["labelSelector"]["matchLabels"],
    ]
    for selector in selectors:
        assert selector
        assert selector.items() <= labels.items()
    assert MONITOR["spec"]["selector"]["matchLabels"].items() <= SERVICE["metadata"]["labels"].items()
    assert {port["targetPort"] for port in SERVICE["spec"]["ports"]} == ports
    assert {port["port"] for rule in policy["ingress"] for port in rule["ports"]} == ports
    assert {endpoint["port"] for endpoint in MONITOR["spec"]["endpoints"]} <= {
        p["name"] for p in SERVICE["spec"]["ports"]
    }
    assert SERVICE["metadata"]["labels"][MONITOR["spec"]["jobLabel"]] == "chunkcast", "the alerts' job"
    # Robots are spread by their own look-ups.
    assert SERVICE["spec"]["clusterIP"] == "None"
    assert any(argument.startswith("--max-connection-age=") for argument in server_container(DEPLOYMENT)["args"])
    # Nobody is sent away before there is another.
    assert DEPLOYMENT["spec"]["replicas"] >= 2
    assert DEPLOYMENT["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
    assert budget["maxUnavailable"] < DEPLOYMENT["spec"]["replicas"]
    assert (policy["policyTypes"], policy["egress"]) == (["Ingress", "Egress"], [])


def test_the_guide_makes_every_secret_that_is_asked_for() -> None:
    volumes = {volume["name"]: volume for volume in pod_of(DEPLOYMENT)["volumes"]}
    mounted = [source["secret"]["name"] for source in volumes["secrets"]["projected"]["sources"]]
    assert len(mounted) == 3
    (endpoint,) = MONITOR["spec"]["endpoints"]
    scraped = [endpoint["authorization"]["credentials"]["name"], endpoint["tlsConfig"]["ca"]["secret"]["name"]]
    made = set(re.findall(r"kubectl create secret generic (\S+)", GUIDE))
    assert {*mounted, *scraped} <= made
    claim = volumes["policies"]["persistentVolumeClaim"]["claimName"]
    assert claim == of_kind("PersistentVolumeClaim", BASE)["metadata"]["name"]
    assert claim == pod_of(WRITER[0])["volumes"][0]["persistentVolumeClaim"]["claimName"]


# ------------------------------------------------------------------------------------------------------------ systemd


def lay_unit(folder: Path, *drop_ins: str) -> Path:
    """The unit with an executable that is there, which ``verify`` asks for."""
    unit = folder / "chunkcast.service"
    text = (SYSTEMD / "chunkcast.service").read_text()
    assert text.count(EXECUTABLE) == 1
    unit.write_text(text.replace(EXECUTABLE, sys.executable))
    (folder / "chunkcast.service.d").mkdir()
    for drop_in in drop_ins:
        shutil.copy(SYSTEMD / drop_in, folder / "chunkcast.service.d" / drop_in)
    return unit


def systemd_analyze(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    program = shutil.which("systemd-analyze")
    if not program:
        pytest.skip("systemd-analyze is not installed (apt-get install systemd)")
    command = [program, "--no-pager", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.parametrize("drop_ins", [(), ("gpu.conf",), ("credentials.conf",), ("gpu.conf", "credentials.conf")])
def test_systemd_understands_the_unit(tmp_path: Path, drop_ins: tuple[str, ...]) -> None:
    result = systemd_analyze("verify", "--man=no", lay_unit(tmp_path, *drop_ins))
    # A setting that it does not know is only a warning.
    assert (result.returncode, result.stdout + result.stderr) == (0, "")


def test_systemd_notices_a_typing_error(tmp_path: Path) -> None:
    unit = lay_unit(tmp_path)
    (tmp_path / "chunkcast.service.d" / "wrong.conf").write_text("[Service]\nMemoryMaximum=2G\n")
    assert "MemoryMaximum" in systemd_analyze("verify", "--man=no", unit).stderr


def test_the_unit_exposes_little(tmp_path: Path) -> None:
    """On systemd's scale from 0 to 10, of which 2 is for what must reach the network."""
    result = systemd_analyze("security", "--offline=yes", "--threshold=20", lay_unit(tmp_path))
    if "unrecognized option" in result.stderr:
        pytest.skip("systemd before 250")
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_unit_comes_back_at_once() -> None:
    assert unit_value("Type") == "exec"
    assert unit_value("Restart") == "always"
    assert unit_value("RestartSec") == "200ms"
    assert unit_value("StartLimitIntervalSec") == "0"


# ------------------------------------------------------------------------------------------------------------- Docker


def test_hadolint_has_nothing_to_say() -> None:
    result = subprocess.run([PROGRAMS / "hadolint", DOCKER / "Dockerfile"], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout + result.stderr) == (0, "")


def test_hadolint_notices_a_shell_in_front_of_the_server() -> None:
    wrong = "FROM python:3.11.14-slim-bookworm\nENTRYPOINT chunkcast-serve\n"
    result = subprocess.run([PROGRAMS / "hadolint", "-"], input=wrong, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "DL3025" in result.stdout


def images_of(target: str) -> Iterator[Stage]:
    """A stage and those that it is made on."""
    while target in STAGES:
        yield STAGES[target]
        target = STAGES[target].base


@pytest.mark.parametrize("target", TARGETS)
def test_the_image(target: str) -> None:
    stage = STAGES[target]
    user, group = stage.last("USER").split(":")
    assert user == group
    assert int(user) >= 1000, "by number, and not root"
    assert stage.command("ENTRYPOINT") == ["chunkcast-serve"]
    assert stage.last("EXPOSE").split() == [str(GRPC_PORT), str(METRICS_PORT)]
    assert json.loads(stage.last("HEALTHCHECK").split("CMD", 1)[1]) == ["python", "/opt/healthcheck.py"]
    names = [name for name, _ in stage.lines]
    assert names.index("USER") > max(at for at, name in enumerate(names) if name in ("RUN", "COPY"))
    copied = [value for name, value in stage.lines if name == "COPY"]
    assert copied == [
        f"--from={target}-build /opt/chunkcast /opt/chunkcast",
        "deploy/docker/healthcheck.py /opt/healthcheck.py",
    ]
    # Nothing that compiles, in this stage and those below it; nor in the image itself.
    packages = " ".join(value for each in images_of(target) for name, value in each.lines if name == "RUN")
    assert not re.search(r"\b(build-essential|gcc|g\+\+|clang|cmake|python3[.\d]*-(dev|venv|pip))\b", packages)
    bottom = list(images_of(target))[-1].base
    assert re.search(r"slim|runtime", bottom)


def test_images_are_pinned() -> None:
    bases = {stage.base for stage in STAGES.values()} - set(STAGES)
    assert len(bases) == 2
    for base in bases:
        assert re.search(r":\d+\.\d+\.\d+-", base), f"{base} has no full version"
    tested = re.search(r"on Python (\d\.\d+)", (ROOT / "constraints.txt").read_text())
    assert tested
    assert STAGES["python"].base.startswith(f"python:{tested[1]}.")
    assert list(STAGES)[-1] == "cpu", "what a build without --target makes"


def test_the_cuda_image_is_what_onnxruntime_was_built_for() -> None:
    try:
        wanted = importlib.metadata.requires("onnxruntime-gpu") or []
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("onnxruntime-gpu is for x86-64")
    (cuda,) = {match[1] for each in wanted if (match := re.match(r"nvidia-cuda-runtime\S*?[~=]=(\d+)", each))}
    image = re.fullmatch(r"nvidia/cuda:(\d+)\.\d+\.\d+-cudnn-runtime-ubuntu24\.04", STAGES["cuda-python"].base)
    assert image
    assert image[1] == cuda


def test_the_build_finds_what_it_copies() -> None:
    lines = (DOCKER / "Dockerfile.dockerignore").read_text().splitlines()
    patterns = [line for line in lines if line and not line.startswith("#")]
    assert patterns[0] == "**", "only what is named reaches the build"
    let_in = [pattern[1:] for pattern in patterns if pattern.startswith("!")]
    for path in let_in:
        assert (ROOT / path).exists(), path
    for name, stage in STAGES.items():
        for instruction, value in stage.lines:
            words = value.split()
            if instruction != "COPY" or words[0] == ".":
                continue
            if words[0].startswith("--from="):
                assert list(STAGES).index(words[0].removeprefix("--from=")) < list(STAGES).index(name)
                continue
            assert set(words[:-1]) <= set(let_in), words
    # What the wheel is made from, by pyproject.toml, is let in; what is large or secret is not.
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert {path.split("/")[0] for path in build["only-include"]} <= set(let_in)
    for path in ("policies", "data", "runs", "bundles", ".git", ".venv", "tls.key", "tokens"):
        assert not any(fnmatch(path, pattern) for pattern in let_in)


def test_the_cpu_image_has_no_gpu_kernels() -> None:
    command = [sys.executable, str(DOCKER / "cpu_requirements.py")]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\n")[:-1]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = [*project["dependencies"], *project["optional-dependencies"]["server"]]
    expected = {re.split(r"[>=;\[ ]", each)[0].replace("onnxruntime-gpu", "onnxruntime") for each in declared}
    assert {re.split(r"[>=;\[ ]", line)[0] for line in printed} == expected
    assert "onnxruntime" in expected
    assert len(printed) == len(expected), "each once"
    # The constraint that the build makes of onnxruntime-gpu's.
    assert re.search(r"^onnxruntime-gpu==", (ROOT / "constraints.txt").read_text(), re.MULTILINE)


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("target", TARGETS)
def test_the_image_builds_and_serves(target: str) -> None:
    """Where a Docker daemon answers, which may fetch images and packages."""
    docker = shutil.which("docker")
    if not docker or subprocess.run([docker, "info"], capture_output=True, check=False).returncode:
        pytest.skip("no Docker daemon answers")
    tag = f"chunkcast:test-{target}"
    build = [docker, "build", "-f", str(DOCKER / "Dockerfile"), "--target", target, "-t", tag, "."]
    subprocess.run(build, cwd=ROOT, check=True)
    confined = ["--rm", "--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL", "--network", "none"]
    result = subprocess.run([docker, "run", *confined, tag], capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 2
    assert "error: /srv/policies holds no bundle" in result.stderr or "error: /etc/chunkcast" in result.stderr


# --------------------------------------------------------------------------------------------------------- the guide


def guide_commands(program: str) -> list[list[str]]:
    """The guide's command lines of a program, wherever they run."""
    lines = re.sub(r"\\\n\s*", "", GUIDE).splitlines()
    found = [re.split(rf"(?:^|[\s/]){program} ", line, maxsplit=1)[1:] for line in lines if line.startswith("    ")]
    return [shlex.split(rest[0], comments=True) for rest in found if rest]


def test_the_guide_operates_the_servers(place: Place) -> None:
    commands = guide_commands("chunkcast-admin")
    assert len(commands) >= 2
    for words in commands:
        arguments = ["--server", "127.0.0.1:1", *place.arguments(words)]
        command = [sys.executable, "-m", "chunkcast.client.admin_cli", *arguments]
        result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        # No server answers there; 2 would be bad input.
        assert result.returncode == 1, f"{words}: {result.stderr}"


def test_the_guide_makes_a_certificate_that_is_accepted(tmp_path: Path) -> None:
    """By the server, by gRPC under the Service's names, and by ``chunkcast-admin`` under its address."""
    if not shutil.which("openssl"):
        pytest.skip("openssl is not installed (apt-get install openssl)")
    for words in guide_commands("openssl"):
        result = subprocess.run(["openssl", *words], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr
    flags = ["--tls-cert", str(tmp_path / "tls.crt"), "--tls-key", str(tmp_path / "tls.key")]
    authority = (tmp_path / "ca.crt").read_bytes()
    with private_server(SHIPPED_BUNDLE, *flags) as server:
        for name in ("chunkcast", "chunkcast.robots.svc", "127.0.0.1"):
            options = [("grpc.ssl_target_name_override", name), ("grpc.enable_http_proxy", 0)]
            credentials = grpc.ssl_channel_credentials(authority)
            with grpc.secure_channel(server.address, credentials, options=options) as channel:
                stub = pb_grpc.PolicyServiceStub(channel)
                assert stub.ListPolicies(pb.ListPoliciesRequest(), timeout=10).policies


def test_the_guide_names_alerts_that_there_are() -> None:
    rules = yaml.safe_load((ROOT / "server" / "observability" / "alerts.yml").read_text())
    alerts = {rule["alert"] for group in rules["groups"] for rule in group["rules"]}
    named = set(re.findall(r"`(Chunkcast\w+)`", GUIDE))
    assert named
    assert named <= alerts


def test_the_guide_names_files_that_are_there() -> None:
    named = set(re.findall(r"(?<![\w/])(?:deploy|server/observability|policies)/[\w./-]*\w", GUIDE))
    assert len(named) >= 5
    for path in named:
        assert (ROOT / path).exists(), path
