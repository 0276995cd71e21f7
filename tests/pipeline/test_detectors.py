"""`selfalign detectors`: the catalogue, and fetching from servers that break, lie and answer what nobody asked for."""

import hashlib
import http.server
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from click.testing import CliRunner, Result

from extract.vision import catalogue, fetching
from extract.vision.catalogue import CATALOGUE, Entry
from extract.vision.weights import local_weights
from manifests.errors import InputError
from pipeline.cli import main
from tests.extract.test_rcnn import CHECKPOINT, SPEC
from tests.pipeline.project import CHECKOUT

BYTES = CHECKPOINT.read_bytes()
DIGEST = hashlib.sha256(BYTES).hexdigest()
MD5 = hashlib.md5(BYTES).hexdigest()
Answer = Callable[["Handler"], None]


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers as the server's list of answers says, the last one from then on, and notes what was asked."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.server.asked.append((self.path, self.headers.get("Range"), self.headers.get("If-Range")))
        answers = self.server.answers
        (answers.pop(0) if len(answers) > 1 else answers[0])(self)
        self.close_connection = True

    def send(self, content: bytes, code: int = 200, *, claim: int | None = None, **headers: str) -> None:
        self.send_response(code)
        for name, value in {"Content-Length": str(len(content) if claim is None else claim), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass


def served(*, stop: int | None = None, etag: str | None = '"one"', content: bytes = BYTES) -> Answer:
    """The file, or from where it is asked for; only `stop` bytes of it if given, as where a connection breaks."""

    def answer(handler: Handler) -> None:
        start, own = 0, {"ETag": etag} if etag else {}
        range_header, same = handler.headers.get("Range"), handler.headers.get("If-Range") == etag
        if range_header and same:
            start = int(range_header.removeprefix("bytes=").removesuffix("-"))
            own["Content_Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        left = content[start:]
        handler.send(left if stop is None else left[:stop], 206 if start else 200, claim=len(left), **own)

    return answer


def coded(code: int) -> Answer:
    return lambda handler: handler.send(b"no", code)


def sent(content: bytes, **headers: str) -> Answer:
    return lambda handler: handler.send(content, **headers)


def raw(content: bytes) -> Answer:
    return lambda handler: handler.wfile.write(content)


class Server(http.server.ThreadingHTTPServer):
    answers: list[Answer]
    asked: list[tuple[str, str | None, str | None]]

    def address(self, name: str = "model_final_f97cb7.pkl") -> str:
        return f"http://127.0.0.1:{self.server_port}/{name}"

    def handle_error(self, *_: Any) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(fetching, "WAIT", 0.0)
    running = Server(("127.0.0.1", 0), Handler)
    running.answers, running.asked = [served()], []
    threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
    yield running
    running.shutdown()
    running.server_close()


def entry(server: Server, **own: Any) -> Entry:
    """The golden checkpoint as an entry of the catalogue."""
    keys = {"name": "rcnn", **{key: value for key, value in SPEC.items() if key not in ("name", "weights", "sha256")}}
    facts = {"classes": 20, "attributes": 12, "dim": 256, "licence": "none", "seconds": None}
    return Entry(what="tiny", source="a test", address=server.address(), detector=keys, **(facts | own))


def selfalign(*arguments: str, answer: str | None = None) -> Result:
    result = CliRunner().invoke(main, ["detectors", *arguments], input=answer)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


@pytest.fixture
def tiny(server: Server, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Puts an entry "tiny" into the catalogue."""

    def put(**own: Any) -> None:
        monkeypatch.setitem(catalogue.CATALOGUE, "tiny", entry(server, **own))

    return put


def test_the_catalogue_is_listed_and_shown() -> None:
    text = selfalign().stdout
    assert all(name in text for name in CATALOGUE)
    for name, own in CATALOGUE.items():
        output = selfalign("show", name).stdout
        assert own.address in output and own.licence in output and own.source in output
        assert "sha256:" in output and own.note in output
    assert "did you mean 'coco-r50-c4'?" in selfalign("show", "coco-r50-c5").stderr
    page = (CHECKOUT / "docs/detectors.md").read_text(encoding="utf-8")
    assert [name for name in CATALOGUE if f"| `{name}` |" not in page] == []


def test_a_detector_is_fetched_checked_read_and_its_lines_are_printed(
    server: Server, tiny: Callable[..., None], tmp_path: Path
) -> None:
    tiny(published=("md5", MD5[:6]))
    result = selfalign("fetch", "tiny")
    assert result.exit_code == 0, result.stderr
    assert f"sha256   {DIGEST}" in result.stdout and f"the start of its md5 ({MD5[:6]})" in result.stdout
    lines = yaml.safe_load(result.stdout[result.stdout.index("    regions:") :])["regions"]
    assert lines["detector"]["sha256"] == DIGEST and lines["detector"]["weights"] == server.address()
    assert local_weights(server.address(), DIGEST).read_bytes() == BYTES
    assert len(server.asked) == 1 and not list((tmp_path / "cache").rglob("content*"))


def test_a_fetch_that_breaks_goes_on_from_there(server: Server) -> None:
    server.answers = [served(stop=1000), coded(503), served(stop=5000), served()]
    assert local_weights(server.address(), DIGEST).read_bytes() == BYTES
    ranges = [(range_header, same) for _, range_header, same in server.asked]
    assert ranges == [
        (None, None),
        ("bytes=1000-", '"one"'),
        ("bytes=1000-", '"one"'),
        ("bytes=6000-", '"one"'),
    ]


def test_a_later_command_goes_on_too(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "TRIES", 1)
    server.answers = [served(stop=1000), served()]
    message = f"ends after 1,000 of {len(BYTES):,} bytes.*run the same command again"
    with pytest.raises(InputError, match=message):
        local_weights(server.address(), DIGEST)
    assert local_weights(server.address(), DIGEST).read_bytes() == BYTES
    assert server.asked[1][1] == "bytes=1000-"


@pytest.mark.parametrize(
    "second",
    [
        [served(etag='"two"')],
        [coded(416), served()],
        [lambda h: h.send(BYTES[:10], 206, ETag='"one"', Content_Range="bytes 0-9/10"), served()],
    ],
    ids=["changed", "no such part", "another part"],
)
def test_another_file_is_fetched_from_its_start(server: Server, second: list[Answer]) -> None:
    server.answers = [served(stop=1000, content=b"old" * 10**6), *second]
    assert local_weights(server.address(), DIGEST).read_bytes() == BYTES


def test_without_anything_to_tell_a_file_by_it_is_fetched_from_its_start(server: Server) -> None:
    server.answers = [served(stop=1000, etag=None), served(etag=None)]
    assert local_weights(server.address(), DIGEST).read_bytes() == BYTES
    assert [range_header for _, range_header, _ in server.asked] == [None, None]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (served(stop=1000), f"ends after 4,000 of {len(BYTES):,} bytes, the last of 4 times"),
        (coded(404), "the server answers 404"),
        (coded(403), "the server answers 403"),
        (coded(500), "the server answers 500.*the last of 4 times"),
        (sent(b""), "the answer is empty"),
        (sent(b"<!DOCTYPE html><title>Sign\n in</title>"), "a page called 'Sign in', not a checkpoint"),
        (sent(b"  <Error><Code>NoSuchKey</Code></Error>"), "a page, not a checkpoint"),
        (sent(b"\x00garbage\xff" * 999), "not a checkpoint of tensors or arrays"),
        (sent(BYTES[: len(BYTES) // 2]), "not a checkpoint of tensors or arrays"),
        (sent(b"PK\x03\x04" + b"0" * 99), "not a checkpoint of tensors or arrays"),
        (raw(b"\x16\x03\x01\x00nothing of HTTP\r\n\r\n"), "can't be fetched"),
        (raw(b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\nno checkpoint"), "not a checkpoint"),
        (raw(b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\nno checkpoint"), "not a checkpoint"),
        (raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabc"), "the answer ends too early"),
        (raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nabc"), "can't be fetched|ends too early"),
        (raw(b""), "closed connection|without response"),
        (lambda h: h.send(b"", 302, Location=h.path), "redirect"),
        (lambda h: h.send(b"", 302, Location="file:///etc/passwd"), "302"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_download_that_is_no_checkpoint_is_described(
    server: Server, answer: Answer, message: str, tmp_path: Path
) -> None:
    server.answers = [answer]
    result = selfalign("fetch", server.address(), "--yes")
    assert result.exit_code == 1
    (line,) = result.stderr.strip().splitlines()[-1:]
    assert line.startswith("error: ") and "Fix: " in line
    assert re.search(message, line), line
    kept = [path for path in (tmp_path / "cache").rglob("*") if path.is_file() and "unfinished" not in path.parts]
    assert kept == []


@pytest.mark.parametrize(
    "address",
    [
        "http://127.0.0.1:1/x",
        "http://127.0.0.1:99999/x",
        "http://127.0.0.1:port/x",
        "http://[::1/x",
        "http://",
        "http:///x",
        "http://a b/x",
        "http://127.0.0.1/\x00",
        "http://ä/..",
        "gopher://127.0.0.1/x",
        "file:///nowhere",
        "file:///dev/zero",
        "file:///",
        "ftp://127.0.0.1:1/x",
        "s3://bucket/x",
        "data:,x",
        "http://" + "a" * 300 + "/x",
        "javascript:x",
        "",
        "..",
    ],
)
def test_no_address_ends_in_a_traceback(server: Server, address: str) -> None:
    result = selfalign("fetch", "--", address)
    assert result.exit_code == 1 and "Fix: " in result.stderr.splitlines()[-1]


def test_a_wrong_sum_is_refused_and_nothing_is_kept(server: Server, tiny: Callable[..., None], tmp_path: Path) -> None:
    tiny(published=("sha256", "0123abcd"))
    result = selfalign("fetch", "tiny", "--yes")
    assert f"its sha256 is {DIGEST}, and its name says that it begins with 0123abcd" in result.stderr
    with pytest.raises(InputError, match=f"sha256 {DIGEST}"):
        local_weights(server.address(), "1" * 64)
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_the_sum_that_a_redirect_says_is_held_against_the_file(server: Server, tiny: Callable[..., None]) -> None:
    """As the hub does for files that it keeps elsewhere."""

    def moved(digest: str) -> Answer:
        return lambda h: h.send(b"", 302, Location="/there", X_Linked_Etag=f'"{digest}"')

    tiny()
    server.answers = [moved("ab" * 32), served()]
    assert f"its sha256 is {DIGEST}, its server says {'ab' * 32}" in selfalign("fetch", "tiny").stderr
    server.answers = [moved(DIGEST), served()]
    result = selfalign("fetch", "tiny")
    assert result.exit_code == 0 and "checked  the sha256 that its server says" in result.stdout


def test_where_nothing_is_published_it_asks(server: Server, tiny: Callable[..., None], tmp_path: Path) -> None:
    tiny()
    unanswered = selfalign("fetch", "tiny")
    assert DIGEST in unanswered.stdout and "Keep them?" in unanswered.stdout
    assert "with --yes: nothing is fetched a second time" in unanswered.stderr
    assert len(server.asked) == 1
    assert selfalign("fetch", "tiny", answer="y\n").exit_code == 0
    assert len(server.asked) == 1
    (tmp_path / "cache").rename(tmp_path / "earlier")
    assert "not kept" in selfalign("fetch", "tiny", answer="n\n").stderr
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    ("own", "change", "message"),
    [
        ({"classes": 80}, None, "the weights have 20 classes, not 80"),
        ({"attributes": 400}, None, "12 attributes, not 400"),
        ({}, "roi_heads.box_predictor.cls_score.bias", "'cls_score.bias'|cls_score.bias"),
        ({}, "backbone.res3.1.conv2.weight", "layer2.1.conv2.weight"),
    ],
    ids=["classes", "attributes", "a missing head", "a missing block"],
)
def test_weights_of_another_detector_stop_with_the_list(
    server: Server, tiny: Callable[..., None], tmp_path: Path, own: dict[str, int], change: str | None, message: str
) -> None:
    if change:
        state = torch.load(CHECKPOINT, weights_only=True)["model"]
        del state[change]
        torch.save({"model": state}, tmp_path / "changed.pth")
        server.answers = [served(content=(tmp_path / "changed.pth").read_bytes())]
    tiny(**own)
    result = selfalign("fetch", "tiny", "--yes")
    assert result.exit_code == 1 and re.search(message, result.stderr), result.stderr
    assert "regions:" not in result.stdout


def test_names_that_cannot_be_had_are_said(server: Server, tiny: Callable[..., None]) -> None:
    tiny(published=("md5", MD5[:6]), names={"object_names": server.address("names.txt")})
    server.answers = [served(), coded(404)]
    result = selfalign("fetch", "tiny")
    assert result.exit_code == 0 and "no object_names: " in result.stdout and "404" in result.stdout
    server.answers = [served(), sent(b"".join(b"thing %d\n" % number for number in range(20)))]
    lines = yaml.safe_load((text := selfalign("fetch", "tiny").stdout)[text.index("    regions:") :])["regions"]
    assert Path(lines["detector"]["object_names"]).read_text().splitlines()[19] == "thing 19"
