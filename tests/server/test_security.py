"""Who may connect, what they may take, and what changes while they do: real certificates, tokens and servers."""

from __future__ import annotations

import base64
import json
import ssl
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import trustme
from grpc_health.v1 import health_pb2, health_pb2_grpc

from chunkcast.client import ChunkPlayer, Credentials, NotAllowed, PolicyClient, PolicyOverloaded, PolicyUnavailable
from chunkcast.client.private_server import PrivateServer, private_server
from chunkcast.server.security.tokens import TokenFile
from chunkcast.v1 import admin_pb2, admin_pb2_grpc
from chunkcast.v1 import policy_pb2 as pb
from chunkcast.v1 import policy_pb2_grpc as pb_grpc
from tests.conftest import ServeBundle
from tests.handmade_bundle import STATE_KEY, STATE_SIZE, write_echo_bundle

OBSERVATION = {STATE_KEY: np.zeros(STATE_SIZE, np.float32)}
ROBOT, OPERATOR = "arm-1 " + "r" * 22, "anna " + "o" * 22
PATIENCE = 20.0


class Authority:
    """A certificate authority, and the files of what it signed."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._ca = folder, trustme.CA()
        self.file = folder / "ca.pem"
        self._ca.cert_pem.write_to_path(str(self.file))

    def issue(self, name: str, *, common_name: str = "", expires: datetime | None = None) -> tuple[Path, Path]:
        """Certificate and key for loopback, as files; the names stay when they are issued anew."""
        issued = self._ca.issue_cert("127.0.0.1", "localhost", common_name=common_name or None, not_after=expires)
        certificate, key = self.folder / f"{name}.crt", self.folder / f"{name}.key"
        # Renamed over the old ones, as programs that renew certificates do.
        for content, file in ((issued.cert_chain_pems[0].bytes(), certificate), (issued.private_key_pem.bytes(), key)):
            aside = file.with_suffix(".new")
            aside.write_bytes(content)
            aside.replace(file)
        return certificate, key


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def flags(pair: tuple[Path, Path], *more: str | Path) -> list[str]:
    return [str(each) for each in ("--tls-cert", pair[0], "--tls-key", pair[1], *more)]


def tokens(file: Path, *lines: str) -> Path:
    aside = file.with_suffix(".new")
    aside.write_text("# robots\n\n" + "\n".join(lines) + "\n")
    return aside.replace(file)


def ask(address: str, credentials: Credentials) -> pb.PolicySpec:
    with PolicyClient(address, credentials=credentials, timeout=PATIENCE) as client:
        return client.get_policy()


def until(holds: Callable[[], bool]) -> None:
    give_up = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < give_up, "it did not come about"
        time.sleep(0.05)


def refused(address: str, credentials: Credentials) -> bool:
    try:
        ask(address, credentials)
    except PolicyUnavailable:
        return True
    return False


def test_tls_serves_those_who_know_the_authority_and_nobody_else(
    serve_bundle: ServeBundle, tmp_path: Path, authority: Authority
) -> None:
    server = serve_bundle(write_echo_bundle(tmp_path / "echo"), *flags(authority.issue("server")))
    assert ask(server.address, Credentials(ca=authority.file)).name == "echo"
    (tmp_path / "other").mkdir()
    with pytest.raises(PolicyUnavailable, match=r"(?i)certificate"):
        ask(server.address, Credentials(ca=Authority(tmp_path / "other").file))
    with pytest.raises(PolicyUnavailable):
        ask(server.address, Credentials())
    with pytest.raises(PolicyUnavailable, match=r"(?i)name|peer"):
        ask(server.address, Credentials(ca=authority.file, server_name="arm.example"))


def test_mutual_tls_serves_only_clients_with_a_certificate(
    serve_bundle: ServeBundle, tmp_path: Path, authority: Authority
) -> None:
    pair = authority.issue("server")
    server = serve_bundle(
        write_echo_bundle(tmp_path / "echo"),
        *flags(pair, "--tls-client-ca", authority.file, "--max-client-streams", "1"),
    )
    mine = Credentials(ca=authority.file)
    with pytest.raises(PolicyUnavailable):
        ask(server.address, mine)
    certificate, key = authority.issue("robot", common_name="arm-7")
    known = Credentials(ca=authority.file, certificate=certificate, key=key)
    with (
        PolicyClient(server.address, credentials=known) as client,
        client.stream(),
        # The certificate's name is whose stream it is.
        pytest.raises(PolicyOverloaded, match=r"^arm-7 has 1 streams open already"),
    ):
        client.stream()
    (tmp_path / "other").mkdir()
    certificate, key = Authority(tmp_path / "other").issue("robot")
    with pytest.raises(PolicyUnavailable):
        ask(server.address, Credentials(ca=authority.file, certificate=certificate, key=key))


def test_a_renewed_certificate_is_shown_to_the_next_connection_and_streams_go_on(
    serve_bundle: ServeBundle, tmp_path: Path, authority: Authority
) -> None:
    old = datetime.now(UTC) + timedelta(days=2)
    server = serve_bundle(write_echo_bundle(tmp_path / "echo"), *flags(authority.issue("server", expires=old)))
    credentials = Credentials(ca=authority.file)
    host, port = server.address.split(":")
    page_host, page_port = server.metrics_address.split(":")

    def shown(address: tuple[str, int]) -> str:
        return ssl.get_server_certificate(address, timeout=PATIENCE)

    before = shown((host, int(port))), shown((page_host, int(page_port)))
    with PolicyClient(server.address, credentials=credentials) as client, client.stream() as stream:
        stream.request(OBSERVATION, episode_id="e", step=0, instruction="left")
        renewed = datetime.now(UTC) + timedelta(days=90)
        authority.issue("server", expires=renewed)
        until(lambda: shown((host, int(port))) != before[0] and shown((page_host, int(page_port))) != before[1])
        assert stream.request(OBSERVATION, episode_id="e", step=1).step == 1
    assert ask(server.address, credentials).name == "echo"
    # Half of a pair leaves what is there, and what is renewed then counts.
    (tmp_path / "server.key").write_text("no key")
    time.sleep(1.5)
    assert ask(server.address, credentials).name == "echo"
    context = ssl.create_default_context(cafile=str(authority.file))

    def expiry() -> float:
        text = page(f"https://{server.metrics_address}/metrics", context=context)[1]
        (line,) = [line for line in text.splitlines() if line.startswith("chunkcast_certificate_expiry_timestamp_s")]
        return float(line.split()[1])

    until(lambda: expiry() == int(renewed.timestamp()))


def test_an_expired_certificate_is_refused_and_a_robot_comes_back_when_it_is_renewed(
    serve_bundle: ServeBundle, tmp_path: Path, authority: Authority
) -> None:
    expired = datetime.now(UTC) - timedelta(seconds=1)
    server = serve_bundle(write_echo_bundle(tmp_path / "echo"), *flags(authority.issue("server", expires=expired)))
    credentials = Credentials(ca=authority.file)
    with PolicyClient(server.address, credentials=credentials) as client:
        with pytest.raises(PolicyUnavailable, match=r"(?i)expired"):
            client.wait_until_ready(1.0)
        authority.issue("server")
        client.wait_until_ready(PATIENCE)
        assert client.get_policy().name == "echo"


def test_tokens_name_the_robot_and_nobody_else_is_served(serve_bundle: ServeBundle, tmp_path: Path) -> None:
    file = tokens(tmp_path / "tokens", ROBOT, "arm-2 " + "s" * 22)
    server = serve_bundle(write_echo_bundle(tmp_path / "echo"), "--token-file", str(file), "--max-client-streams", "1")
    mine, wrong = tmp_path / "mine", tmp_path / "wrong"
    mine.write_text(ROBOT)
    wrong.write_text("x" * 22)
    with pytest.raises(NotAllowed, match="this server asks for a bearer token"):
        ask(server.address, Credentials())
    with pytest.raises(NotAllowed, match="unknown token"):
        ask(server.address, Credentials(token_file=wrong))
    with PolicyClient(server.address, credentials=Credentials(token_file=mine)) as client:
        with client.stream() as stream:
            assert stream.request(OBSERVATION, episode_id="e", step=0, instruction="left").step == 0
            assert len(stream.stream_id) == 16
            with pytest.raises(PolicyOverloaded, match=r"^arm-1 has 1 streams open already") as overloaded:
                client.stream()
            assert overloaded.value.retry_after > 0.0
        mine.write_text(wrong.read_text())
        with pytest.raises(NotAllowed):
            client.stream()
    with grpc.insecure_channel(server.address) as channel:
        # Probes ask without a token; what is not there needs none either, and every other call does.
        assert health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=PATIENCE).status == 1
        calls: tuple[Any, ...] = (
            channel.stream_stream("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"),
            channel.stream_stream("/chunkcast.v1.PolicyService/StreamActions"),
        )
        for call in calls:
            with pytest.raises(grpc.RpcError) as error:
                next(call(iter([b""]), timeout=PATIENCE))
            assert error.value.code() == grpc.StatusCode.UNAUTHENTICATED
    assert "".join(metric(server, "chunkcast_refused_requests_total")).count("token") == 1


def test_a_token_that_is_taken_away_ends_its_streams_and_its_successor_is_good_at_once(
    serve_bundle: ServeBundle, tmp_path: Path
) -> None:
    file = tokens(tmp_path / "tokens", ROBOT)
    server = serve_bundle(write_echo_bundle(tmp_path / "echo"), "--token-file", str(file))
    mine = tmp_path / "mine"
    mine.write_text(ROBOT)
    renewed = "arm-1 " + "n" * 22
    with PolicyClient(server.address, credentials=Credentials(token_file=mine)) as client, client.stream() as stream:
        tokens(file, ROBOT, renewed)  # both are good while robots change theirs
        until(lambda: not refused(server.address, renewed_credentials(tmp_path, renewed)))
        assert stream.request(OBSERVATION, episode_id="e", step=0, instruction="left").step == 0
        file.write_text("arm-1\n")  # no list of tokens: the old ones stay
        time.sleep(1.5)
        assert stream.request(OBSERVATION, episode_id="e", step=1).step == 1
        tokens(file, renewed)
        until(lambda: stream.over)
        with pytest.raises(NotAllowed, match="no longer good"):
            stream.request(OBSERVATION, episode_id="e", step=2)
        mine.write_text(renewed)
        assert client.get_policy().name == "echo"
        with client.stream() as last:
            file.write_text("# nobody\n")  # the last line is taken away
            until(lambda: last.over)
        with pytest.raises(NotAllowed, match="unknown token"):
            client.get_policy()


def renewed_credentials(folder: Path, line: str) -> Credentials:
    (folder / "renewed").write_text(line)
    return Credentials(token_file=folder / "renewed")


def test_operators_have_tokens_of_their_own(serve_bundle: ServeBundle, tmp_path: Path) -> None:
    robots, operators = tokens(tmp_path / "robots", ROBOT), tokens(tmp_path / "operators", OPERATOR)
    server = serve_bundle(
        write_echo_bundle(tmp_path / "echo"), "--token-file", str(robots), "--admin-token-file", str(operators)
    )
    with grpc.insecure_channel(server.admin_address) as channel:
        stub = admin_pb2_grpc.AdminServiceStub(channel)
        for line in ("", ROBOT):
            metadata = (("authorization", f"Bearer {line.split()[-1]}"),) if line else ()
            with pytest.raises(grpc.RpcError) as error:
                stub.ListVersions(admin_pb2.ListVersionsRequest(), timeout=PATIENCE, metadata=metadata)
            assert error.value.code() == grpc.StatusCode.UNAUTHENTICATED
    mine = tmp_path / "mine"
    mine.write_text(OPERATOR)
    command = [sys.executable, "-m", "chunkcast.client.admin_cli", "--server", server.admin_address]
    listed = subprocess.run(
        [*command, "--token-file", str(mine), "list"], capture_output=True, text=True, timeout=60, check=False
    )
    assert (listed.returncode, listed.stdout.splitlines()[1].split()[0]) == (0, "echo"), listed.stderr
    turned_away = subprocess.run([*command, "list"], capture_output=True, text=True, timeout=60, check=False)
    assert turned_away.returncode == 1
    assert (
        turned_away.stderr
        == "error: this server asks for a bearer token; send authorization: Bearer TOKEN (--token-file)\n"
    )

    url, (name, token) = f"http://{server.metrics_address}", OPERATOR.split()
    basic = base64.b64encode(f"{name}:{token}".encode()).decode()
    other = base64.b64encode(f"robot:{token}".encode()).decode()
    for path in ("/metrics", "/", "/status.json"):
        assert page(url + path)[0] == 401
        assert page(url + path, f"Bearer {ROBOT.split()[1]}")[0] == 401
        assert page(url + path, f"Basic {other}")[0] == 401
        assert page(url + path, "Basic !")[0] == 401
        assert page(url + path, f"Bearer {token}")[0] == page(url + path, f"Basic {basic}")[0] == 200
    assert page(f"{url}/live") == (200, "live\n")
    assert page(f"{url}/ready") == (200, "ready\n")


def page(url: str, authorization: str = "", context: ssl.SSLContext | None = None) -> tuple[int, str]:
    request = urllib.request.Request(url, headers={"Authorization": authorization} if authorization else {})
    handlers: list[Any] = [urllib.request.ProxyHandler({})]
    handlers += [urllib.request.HTTPSHandler(context=context)] if context else []
    try:
        with urllib.request.build_opener(*handlers).open(request, timeout=PATIENCE) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def metric(server: PrivateServer, name: str) -> list[str]:
    lines = page(f"http://{server.metrics_address}/metrics")[1].splitlines()
    return [line for line in lines if line.startswith(name) and not line.endswith(" 0.0")]


@pytest.fixture
def limited_server(tmp_path: Path) -> Iterator[PrivateServer]:
    bundle = write_echo_bundle(tmp_path / "echo")
    with private_server(bundle, "--max-client-rate", "20", "--max-message-mb", "1") as server:
        yield server


def test_a_client_that_floods_is_told_each_time_and_read_no_faster_than_it_may(limited_server: PrivateServer) -> None:
    count = 60
    with PolicyClient(limited_server.address, timeout=PATIENCE) as client, client.stream() as stream:
        began = time.monotonic()
        for step in range(count):
            observation = pb.Observation(episode_id="e", step=step, instruction="left")
            observation.tensors[STATE_KEY].dtype = pb.DATA_TYPE_FLOAT32
            observation.tensors[STATE_KEY].shape.append(STATE_SIZE)
            observation.tensors[STATE_KEY].data = bytes(4 * STATE_SIZE)
            stream.send(observation)
        answers = [stream.receive(PATIENCE) for _ in range(count)]
        seconds = time.monotonic() - began
    # Each has its answer, in order; after the burst every other one is beyond the rate, and reading waits for it.
    assert [token.step for token, _ in answers] == list(range(count))
    limited = [answer for _, answer in answers if isinstance(answer, PolicyOverloaded)]
    assert len(limited) >= 20
    assert all("may make 20 requests a second" in str(each) and 0.0 < each.retry_after <= 0.05 for each in limited)
    assert seconds > 0.8 * len(limited) / 20
    assert any('reason="rate"' in line for line in metric(limited_server, "chunkcast_refused_requests_total"))


def test_unary_calls_count_as_requests_too(limited_server: PrivateServer) -> None:
    def many(client: PolicyClient) -> None:
        for _ in range(200):
            client.list_policies()

    with PolicyClient(limited_server.address, timeout=PATIENCE) as client, pytest.raises(PolicyOverloaded) as refusal:
        many(client)
    assert 0.0 < refusal.value.retry_after <= 0.06


def test_a_message_that_is_too_large_is_refused_unread(limited_server: PrivateServer) -> None:
    with grpc.insecure_channel(limited_server.address) as channel:
        request = pb.PredictChunkRequest(observations=[pb.Observation(instruction="x" * 2**20)])
        with pytest.raises(grpc.RpcError) as error:
            pb_grpc.PolicyServiceStub(channel).PredictChunk(request, timeout=PATIENCE)
        assert error.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


def test_a_connection_that_grows_old_is_left_without_a_lost_request(serve_bundle: ServeBundle, tmp_path: Path) -> None:
    server = serve_bundle(write_echo_bundle(tmp_path / "echo"), "--max-connection-age", "1")
    hinted, answered = 0, set()

    def count(chunk: Any, seconds: float) -> None:
        nonlocal hinted
        hinted += chunk.reconnect
        answered.add(chunk.step)

    with (
        PolicyClient(server.address, timeout=PATIENCE) as client,
        ChunkPlayer(client, robot_id="old", timeout=PATIENCE, on_chunk=count) as player,
    ):
        player.begin_episode("left")
        streams: set[str] = set()
        asked: set[int] = set()
        give_up = time.monotonic() + PATIENCE
        while len(streams) < 3:
            assert time.monotonic() < give_up
            player.next_action(OBSERVATION)
            if player._playback._last_request is not None:
                asked.add(player._playback._last_request)
            current = player._connection.current
            assert current is not None, "the robot never is without a stream"
            streams.add(current.stream_id)
            time.sleep(0.02)
        assert hinted >= 2
        while player._playback.waits:
            assert time.monotonic() < give_up
            player.next_action(OBSERVATION)
    # Each observation that a chunk was asked for has had one, of whichever stream.
    assert len(asked) > 10
    assert asked <= answered


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "has no token, expected 1 to 4096"),
        ("arm-1 short\n", "the token of arm-1 has 5 characters, expected 16 to 512"),
        ("only-one-word-in-this-line\n", "line 1 is not NAME TOKEN"),
        ("arm-1 " + "a" * 20 + "\narm-2 " + "a" * 20 + "\n", "arm-1 and arm-2 have the same token"),
    ],
)
def test_files_of_tokens_that_cannot_be_used_are_refused(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "tokens"
    file.write_text(content)
    assert message in refusal(tmp_path, "--token-file", file)
    assert "short" not in refusal(tmp_path, "--token-file", file), "a secret is not repeated"


def test_flags_that_would_be_insecure_are_refused(tmp_path: Path, authority: Authority) -> None:
    certificate, key = authority.issue("server")
    _, other = authority.issue("other")
    operators = tokens(tmp_path / "operators", OPERATOR)
    tls = ("--tls-cert", certificate, "--tls-key", key)
    for arguments, message in (
        (("--listen", "0.0.0.0:0", "--token-file", operators), "has no encryption"),
        ((*tls, "--metrics-listen", "0.0.0.0:0"), "asks nobody who they are; give --admin-token-file"),
        ((*tls, "--admin-listen", "0.0.0.0:0"), "asks nobody who they are; give --admin-token-file"),
        (("--tls-cert", certificate), "--tls-cert and --tls-key go together"),
        (("--tls-client-ca", certificate), "--tls-client-ca needs --tls-cert"),
        (("--tls-cert", certificate, "--tls-key", other), "are no PEM certificate with its key"),
        (("--tls-cert", key, "--tls-key", key), "are no PEM certificate with its key"),
        ((*tls, "--tls-client-ca", key), "holds no PEM certificate of an authority"),
        (("--tls-cert", tmp_path / "none", "--tls-key", key), "cannot be read (No such file or directory)"),
        (("--token-file", tmp_path / "none"), "cannot be read (No such file or directory)"),
        (("--max-client-rate", "-1"), "--max-client-rate is -1.0, expected 0"),
        (("--max-message-mb", "0"), "--max-message-mb is 0, expected 1 to 1024"),
    ):
        assert message in refusal(tmp_path, *arguments)


def refusal(tmp_path: Path, *arguments: str | Path) -> str:
    bundle = tmp_path / "echo"
    if not bundle.exists():
        write_echo_bundle(bundle)
    command = [sys.executable, "-m", "chunkcast.server.cli", "--bundle", bundle, *arguments]
    if "--listen" not in arguments:
        command += ["--listen", "127.0.0.1:0"]
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=60, check=False)
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert (result.returncode, len(lines), "Traceback" in result.stderr) == (2, 1, False), result.stderr
    return lines[0]


def test_beyond_loopback_with_tls_and_tokens_is_served(tmp_path: Path, authority: Authority) -> None:
    operators, robots = tokens(tmp_path / "operators", OPERATOR), tokens(tmp_path / "robots", ROBOT)
    with private_server(
        write_echo_bundle(tmp_path / "echo"),
        *flags(authority.issue("server"), "--token-file", robots, "--admin-token-file", operators),
        *("--listen", "0.0.0.0:0", "--metrics-listen", "0.0.0.0:0", "--admin-listen", "0.0.0.0:0"),
    ) as server:
        port = server.address.split(":")[1]
        mine = tmp_path / "mine"
        mine.write_text(ROBOT)
        assert ask(f"127.0.0.1:{port}", Credentials(ca=authority.file, token_file=mine)).name == "echo"


def test_a_token_does_not_leave_the_machine_in_clear_text(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text(ROBOT)
    with pytest.raises(ValueError, match=r"a token would go to 192\.0\.2\.1:1 in clear text"):
        PolicyClient("192.0.2.1:1", credentials=Credentials(token_file=tmp_path / "mine"))
    (tmp_path / "mine").write_text("two words here")
    with (
        PolicyClient("127.0.0.1:1", credentials=Credentials(token_file=tmp_path / "mine")) as client,
        pytest.raises(NotAllowed, match="has 3 words; expected one TOKEN"),
    ):
        client.get_policy()


def test_the_log_names_streams_and_clients_and_no_secret(tmp_path: Path) -> None:
    robots = tokens(tmp_path / "robots", ROBOT)
    command = [sys.executable, "-m", "chunkcast.server.cli", "--bundle", str(write_echo_bundle(tmp_path / "echo"))]
    command += ["--listen", "127.0.0.1:0", "--metrics-listen", "", "--admin-listen", "", "--log-format", "json"]
    command += ["--token-file", str(robots)]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
    assert process.stdout is not None
    with process.stdout:
        address = process.stdout.readline().split()[1].removeprefix("grpc=")
        mine = tmp_path / "mine"
        mine.write_text(ROBOT)
        with (
            PolicyClient(address, credentials=Credentials(token_file=mine)) as client,
            client.stream(robot_id="left arm") as stream,
        ):
            bad = {STATE_KEY: np.full(STATE_SIZE, np.nan, np.float32)}
            with pytest.raises(Exception, match="finite"):
                stream.request(bad, episode_id="e1", step=7, instruction="left")
            named = stream.stream_id
        # A server that is told to end while the robot does would say that it ended the stream.
        deadline = time.monotonic() + PATIENCE
        while "stream closed" not in (tmp_path / "log").read_text() and time.monotonic() < deadline:
            time.sleep(0.02)
        process.terminate()
        assert process.wait(PATIENCE) == 0
    text = (tmp_path / "log").read_text()
    assert "r" * 22 not in text
    entries = [json.loads(line) for line in text.splitlines()]
    mine_only = [entry for entry in entries if entry.get("stream") == named]
    assert [entry["event"] for entry in mine_only] == ["stream opened", "observation refused", "stream closed"]
    assert mine_only[1].items() >= {"client": "arm-1", "robot": "left arm", "episode": "e1", "step": 7}.items()


def test_calls_without_a_token_or_without_a_message_hold_no_place(serve_bundle: ServeBundle, tmp_path: Path) -> None:
    file = tokens(tmp_path / "tokens", ROBOT)
    flags_ = ("--token-file", str(file), "--admin-token-file", str(file))
    server = serve_bundle(write_echo_bundle(tmp_path / "echo"), *flags_)
    mine = tmp_path / "mine"
    mine.write_text(ROBOT)
    good = (("authorization", f"Bearer {ROBOT.split()[1]}"),)
    over = threading.Event()

    def nothing() -> Iterator[bytes]:
        over.wait(60)
        yield b""

    with grpc.insecure_channel(server.admin_address) as channel:
        # More than the admin service takes at a time; none of them ever sends its message.
        method: Any = channel.stream_unary("/chunkcast.v1.AdminService/ListVersions")
        refused_calls = [method.future(nothing(), timeout=60) for _ in range(32)]
        for call in refused_calls:
            assert call.code() == grpc.StatusCode.UNAUTHENTICATED
        silent = method.future(nothing(), timeout=60, metadata=good)
        listed = admin_pb2_grpc.AdminServiceStub(channel).ListVersions(
            admin_pb2.ListVersionsRequest(), timeout=PATIENCE, metadata=good
        )
        assert len(listed.versions) == 1
        assert silent.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        assert silent.details() == "no request came within 10 s"
        over.set()
    with grpc.insecure_channel(server.address) as channel, pytest.raises(grpc.RpcError) as error:
        next(health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=PATIENCE))
    assert error.value.code() == grpc.StatusCode.UNAUTHENTICATED


def test_a_request_that_is_no_message_is_the_clients_mistake(serve_bundle: ServeBundle, tmp_path: Path) -> None:
    server = serve_bundle(write_echo_bundle(tmp_path / "echo"))
    with grpc.insecure_channel(server.address) as channel:
        unary: Any = channel.unary_unary("/chunkcast.v1.PolicyService/GetPolicy")
        stream: Any = channel.stream_stream("/chunkcast.v1.PolicyService/StreamActions")
        opening = pb.StreamActionsRequest(open=pb.OpenStream()).SerializeToString()
        for call in (
            lambda: unary(b"\xff\xff", timeout=PATIENCE),
            lambda: list(stream(iter([b"\xff\xff"]), timeout=PATIENCE)),
            lambda: list(stream(iter([opening, b"\xff\xff"]), timeout=PATIENCE)),
        ):
            with pytest.raises(grpc.RpcError) as error:
                call()
            assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT
            assert "cannot be read as a protobuf message" in str(error.value.details())


def test_each_port_shows_a_renewed_certificate(serve_bundle: ServeBundle, tmp_path: Path, authority: Authority) -> None:
    server = serve_bundle(write_echo_bundle(tmp_path / "echo"), *flags(authority.issue("server")))
    ports = [address.split(":") for address in (server.address, server.admin_address, server.metrics_address)]

    def shown() -> list[str]:
        return [ssl.get_server_certificate((host, int(port)), timeout=PATIENCE) for host, port in ports]

    before = shown()
    assert len(set(before)) == 1
    authority.issue("server")
    until(lambda: all(now != then for now, then in zip(shown(), before, strict=True)))
    assert len(set(shown())) == 1


def test_tokens_that_could_not_be_read_are_read_when_they_can(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tokens(tmp_path / "tokens", ROBOT)
    kept = TokenFile(file)
    bearer = kept.bearer(ROBOT.split()[1])
    assert bearer is not None
    tokens(file, "arm-2 " + "s" * 22)
    # As a file that belongs to somebody else, for a moment: nothing of its content or times changes when it is given.
    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_text", unreadable)
        kept.refresh()
        assert kept.holds(bearer)
    kept.refresh()
    assert not kept.holds(bearer)


def test_a_file_that_is_empty_for_a_moment_takes_no_token_away(tmp_path: Path) -> None:
    file = tokens(tmp_path / "tokens", ROBOT)
    kept = TokenFile(file)
    bearer = kept.bearer(ROBOT.split()[1])
    assert bearer is not None
    file.write_text("")  # as an editor leaves it before it writes
    kept.refresh()
    assert kept.holds(bearer)
    tokens(file, ROBOT)
    kept.refresh()
    assert kept.holds(bearer)
    file.write_text("")
    kept.refresh()
    kept.refresh()
    assert not kept.holds(bearer)


def unreadable(*_: object) -> str:
    raise PermissionError(13, "Permission denied")
