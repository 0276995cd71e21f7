"""Real servers on loopback, each started by a test and ended with it: sshd, nginx, moto's S3 and the search page's."""

import getpass
import http.client
import json
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from email.message import Message
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from pipeline.serving import app
from pipeline.serving.engine import ServedIndex

SSHD, NGINX = Path("/usr/sbin/sshd"), Path("/usr/sbin/nginx")
SECONDS = 20


def need(there: bool, what: str) -> None:
    """Skip the test where a server isn't installed, unless REQUIRE_SERVERS says that it must be (.ci/run does)."""
    if not there:
        message = f"{what} isn't installed (.ci/run installs it from Debian's packages)"
        pytest.fail(message) if os.environ.get("REQUIRE_SERVERS") else pytest.skip(message)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def nginx(folder: Path, server: Callable[[str], str]) -> Iterator[str]:
    """nginx with one `server` block, made of what it listens on; gives its address. Its files lie in `folder`."""
    need(NGINX.exists(), "nginx")
    listen = f"127.0.0.1:{free_port()}"
    temporary = "".join(
        f"{kind}_temp_path {folder}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    user = "user root;\n" if os.geteuid() == 0 else ""
    config = folder / "nginx.conf"
    config.write_text(
        f"{user}daemon off;\npid {folder}/pid;\nerror_log stderr;\nevents {{}}\n"
        f"http {{\naccess_log {folder}/requests;\n{temporary}{server(f'listen {listen}')}}}\n"
    )
    with _running([str(NGINX), "-e", "stderr", "-c", str(config)], listen, folder / "log"):
        yield f"http://{listen}"


@contextmanager
def sshd(folder: Path, home: Path, host: str) -> Iterator[None]:
    """sshd that lets the one key of `home` in; there, `.ssh/config` calls it `host`. Its files lie in `folder`."""
    need(SSHD.exists() and shutil.which("ssh-keygen") is not None, "openssh-server")
    port = free_port()
    keys = home / ".ssh"
    keys.mkdir(mode=0o700, parents=True)
    for key in (folder / "host_key", keys / "id_ed25519"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    (keys / "config").write_text(f"Host {host}\n  HostName 127.0.0.1\n  Port {port}\n  User {getpass.getuser()}\n")
    config = folder / "sshd_config"
    config.write_text(
        f"ListenAddress 127.0.0.1:{port}\nHostKey {folder}/host_key\nAuthorizedKeysFile {keys}/id_ed25519.pub\n"
        "PidFile none\nUsePAM no\nStrictModes no\nPubkeyAuthentication yes\nPasswordAuthentication no\n"
        "KbdInteractiveAuthentication no\nPermitRootLogin prohibit-password\nSubsystem sftp internal-sftp\n"
    )
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # where sshd gives up its rights
    with _running([str(SSHD), "-D", "-e", "-f", str(config)], f"127.0.0.1:{port}", folder / "log"):
        yield


@contextmanager
def s3(bucket: str) -> Iterator[str]:
    """moto's S3 with one empty bucket; gives its address. Any credentials are let in."""
    server = pytest.importorskip("moto.server", reason="moto isn't installed (the extra `test` has it)")
    boto3 = pytest.importorskip("boto3")
    running = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    try:
        host, port = running.get_host_and_port()
        address = f"http://{host}:{port}"
        keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test", "region_name": "us-east-1"}
        boto3.client("s3", endpoint_url=address, **keys).create_bucket(Bucket=bucket)
        yield address
    finally:
        running.stop()


@contextmanager
def _running(command: list[str], listen: str, log: Path) -> Iterator[None]:
    """A server from when it answers until the block ends."""
    with open(log, "wb") as output:
        server = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    try:
        host, _, port = listen.partition(":")
        end = time.monotonic() + SECONDS
        while True:
            try:
                socket.create_connection((host, int(port)), 1).close()
                break
            except OSError:
                if server.poll() is not None or time.monotonic() > end:
                    pytest.fail(f"{command[0]} doesn't answer on {listen}:\n{log.read_text()}")
                time.sleep(0.02)
        yield
    finally:
        server.terminate()
        server.wait()


@contextmanager
def search_server(indexes: Sequence[ServedIndex]) -> Iterator[str]:
    """The search page's server, in a thread; gives its address."""
    listening = app.listen("127.0.0.1", 0)
    server = app.server(app.make_app(indexes))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        yield app.address(listening).rstrip("/")
    finally:
        server.should_exit = True
        thread.join(SECONDS)
        listening.close()


class Server:
    """Asks a server over HTTP."""

    def __init__(self, address: str):
        self._host = address.removeprefix("http://")

    def raw(
        self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, Message, bytes]:
        """Status, headers and body of an answer."""
        connection = http.client.HTTPConnection(self._host, timeout=SECONDS)
        try:
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read()
        finally:
            connection.close()

    def get(self, path: str, **parameters: object) -> Any:
        """The JSON at a path. Fails unless it is answered."""
        return self._json("GET", path, None, parameters)

    def post(self, path: str, body: bytes, **parameters: object) -> Any:
        return self._json("POST", path, body, parameters)

    def _json(self, method: str, path: str, body: bytes | None, parameters: dict[str, object]) -> Any:
        status, _, content = self.raw(method, f"{path}?{urlencode(parameters, doseq=True)}", body)
        assert status == 200, content
        return json.loads(content)
