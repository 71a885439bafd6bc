"""Push and pull: by path, a real web server, a real S3 server, and the Hub's real client."""

from __future__ import annotations

import http.server
import io
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import requests
from click.testing import CliRunner, Result

from clsp.shards import download, targets
from clsp.shards.__main__ import main
from clsp.shards.check import ShardError
from clsp.shards.reader import ShardSet
from clsp.shards.remote import open_source
from clsp.shards.share import pull, push
from clsp.shards.store import index_folder, open_set

from .faults import FaultServer
from .hub import Hub


@pytest.fixture(scope="module")
def shards(make_set, tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    """Three shards of 4 records with 3 positives, a licence and a README beside them."""
    made = make_set(tmp_path_factory.mktemp("share") / "set", sizes=[4] * 3, positives=3)
    (made.folder / "LICENSE").write_text("CC-BY-4.0\n")
    (made.folder / "README.md").write_text("---\nlicense: cc-by-4.0\n---\n# Digits\n")
    (made.folder / "secret.txt").write_text("not part of the set\n")
    return made


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "FIRST_PAUSE", 0.001)


@pytest.fixture
def copy(shards: ShardSet, tmp_path: Path) -> Path:
    shutil.copytree(shards.folder, tmp_path / "copy")
    return tmp_path / "copy"


LICENSES = ("--license=mit", "--source-license=mit")


def own(shards: ShardSet, folder: Path) -> ShardSet:
    """A copy of the set, for a push that writes a card into it."""
    return open_set(shutil.copytree(shards.folder, folder / "own"))


def clsp_shards(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def files_of(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def is_copy(folder: Path, shards: ShardSet) -> bool:
    expected = files_of(shards.folder)
    expected.pop("secret.txt")
    subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=folder, check=True)
    return files_of(folder) == expected


def test_a_set_goes_to_a_folder_and_back(shards: ShardSet, tmp_path: Path) -> None:
    shards = own(shards, tmp_path)
    result = clsp_shards("push", shards.folder, tmp_path / "shared", *LICENSES)
    assert (result.exit_code, shards.id in result.output) == (0, True), result.output
    assert is_copy(tmp_path / "shared", shards)
    result = clsp_shards("pull", tmp_path / "shared", tmp_path / "mine")
    assert (result.exit_code, "12 records are whole" in result.output) == (0, True), result.output
    assert is_copy(tmp_path / "mine", shards)


def test_the_manifest_goes_last(shards: ShardSet, tmp_path: Path, monkeypatch) -> None:
    order: list[str] = []
    monkeypatch.setattr(targets, "THREADS", 1)
    monkeypatch.setattr(targets, "_copy", lambda file, path: order.append(file.name))
    push(shards.folder, str(tmp_path / "shared"), source_license="mit")
    assert [name.endswith((".tar", ".idx")) for name in order] == [True] * 6 + [False] * 4
    assert order[-2:] == ["SHA256SUMS", "manifest.json"]


def test_a_broken_push_goes_on(shards: ShardSet, tmp_path: Path, monkeypatch) -> None:
    copied, real = [], targets._copy

    def copy(file: targets.Upload, path: Path) -> None:
        copied.append(file.name)
        if len(copied) == 4:
            raise OSError("the disk is full")
        real(file, path)

    monkeypatch.setattr(targets, "THREADS", 1)
    monkeypatch.setattr(targets, "_copy", copy)
    shards = own(shards, tmp_path)
    result = clsp_shards("push", shards.folder, tmp_path / "shared", *LICENSES)
    assert (result.exit_code, "disk is full" in result.output) == (1, True)
    with pytest.raises(ShardError, match=r"has no manifest\.json"):
        open_set(tmp_path / "shared")
    push(shards.folder, str(tmp_path / "shared"), source_license="mit")
    assert copied.count("data/train-00000.tar") == 1
    assert is_copy(tmp_path / "shared", shards)


def test_another_set_is_never_replaced(shards: ShardSet, make_set, tmp_path: Path) -> None:
    other = make_set(tmp_path / "other", sizes=(4,), positives=1)
    with pytest.raises(ShardError, match=f"holds set {shards.id[:12]}, not {other.id[:12]}"):
        push(other.folder, str(shards.folder), source_license="mit")
    (tmp_path / "started" / "data").mkdir(parents=True)
    shutil.copy(other.folder / "data" / "train-00000.tar", tmp_path / "started" / "data")
    with pytest.raises(ShardError, match=r"train-00000\.tar is there with other bytes"):
        push(shards.folder, str(tmp_path / "started"), source_license="mit")
    with pytest.raises(ShardError, match=f"holds another set, {other.id[:12]}"):
        pull(str(shards.folder), other.folder)
    with pytest.raises(ShardError, match="is not empty, and holds no set"):
        pull(str(shards.folder), tmp_path / "started")


def test_a_damaged_set_is_not_pushed(copy: Path, tmp_path: Path) -> None:
    path = copy / "data" / "train-00001.tar"
    data = bytearray(path.read_bytes())
    data[700] ^= 1
    path.write_bytes(data)
    result = clsp_shards("push", copy, tmp_path / "shared", *LICENSES)
    assert result.exit_code == 1
    assert "train-00001.tar: its sha256 is" in result.output
    assert not (tmp_path / "shared" / "manifest.json").exists()


def test_a_pull_brings_damaged_shards_again(shards: ShardSet, copy: Path) -> None:
    (copy / "secret.txt").unlink()
    (copy / "data" / "train-00001.tar").write_bytes(b"x")
    (copy / "data" / "train-00002.idx").unlink()
    with FaultServer(shards.folder) as server:
        pull(server.address, copy)
        brought = {name for name in server.requests if name.startswith("data/")}
    assert brought == {"data/train-00001.tar", "data/train-00002.idx"}
    assert is_copy(copy, shards)


def test_a_broken_pull_goes_on(shards: ShardSet, tmp_path: Path) -> None:
    gone = FaultServer(shards.folder, lambda name, _: "404" if "00002.tar" in name else None)
    with gone as server:
        with pytest.raises(ShardError, match=r"train-00002\.tar: the server answers 404"):
            pull(server.address, tmp_path / "mine")
        assert not (tmp_path / "mine" / "manifest.json").exists()
        with pytest.raises(ShardError, match="an unfinished pull of another set, or part"):
            pull(server.address, tmp_path / "mine", positives=1)
    with FaultServer(shards.folder) as server:
        pull(server.address, tmp_path / "mine")
        assert server.requests["data/train-00000.tar"] == 0
    assert is_copy(tmp_path / "mine", shards)


def test_one_split(make_set, tmp_path: Path) -> None:
    whole = make_set(tmp_path / "whole", sizes=(4, 5, 6))
    for path in sorted((whole.folder / "data").glob("train-00002.*")):
        path.rename(path.with_name(f"val-00000{path.suffix}"))
    shutil.move(whole.folder / "manifest.json", tmp_path)
    whole = index_folder(whole.folder)
    result = clsp_shards("pull", whole.folder, tmp_path / "val", "--split", "val")
    assert result.exit_code == 0, result.output
    found = open_set(tmp_path / "val")
    assert found.keys == whole.keys[9:]
    assert found.manifest.source["part"]["set"] == whole.id
    result = clsp_shards("pull", whole.folder, tmp_path / "no", "--split", "test")
    assert (result.exit_code, "no split 'test'; it has train, val" in result.output) == (1, True)


def test_the_first_positives(shards: ShardSet, tmp_path: Path) -> None:
    for _ in range(2):  # the second time everything is there
        with FaultServer(shards.folder) as server:
            found = pull(server.address, tmp_path / "few", positives=2)
            tars = [name for name in server.requests if name.endswith(".tar")]
        found.verify(deep=True)
        for number in range(12):
            record = shards.record(number)
            assert found.record(number) == replace(record, positives=record.positives[:2])
        assert found.manifest.source["part"] == {"set": shards.id, "split": None, "positives": 2}
        data = {f"data/train-0000{n}.{kind}" for n in range(3) for kind in ("tar", "idx")}
        assert set(files_of(found.folder)) == data | {"LICENSE", "SHA256SUMS", "manifest.json"}
    assert not tars
    result = clsp_shards("push", found.folder, tmp_path / "there", *LICENSES, "--name=Few")
    assert result.exit_code == 0, result.output
    clsp_shards("pull", tmp_path / "there", tmp_path / "fewer", "--positives", 1)
    assert "mit; of the source: mit" in clsp_shards("info", tmp_path / "fewer").output
    card = (tmp_path / "fewer" / "README.md").read_text()
    assert "# Few\n\n12 records of 1 synthetic positives each" in card
    assert (tmp_path / "fewer" / "LICENSE").read_text() == "CC-BY-4.0\n"  # as its makers wrote it
    subprocess.run(["sha256sum", "--check", "SHA256SUMS"], cwd=tmp_path / "fewer", check=True)
    with pytest.raises(ShardError, match="has 3 positives, not 4"):
        pull(str(shards.folder), tmp_path / "more", positives=4)
    with pytest.raises(ShardError, match="holds another set"):
        pull(str(shards.folder), tmp_path / "few")


@pytest.fixture(scope="module")
def nginx(shards: ShardSet, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of the set in a real web server."""
    program = shutil.which("nginx", path=f"{os.environ.get('PATH')}:/usr/sbin")
    if program is None:
        pytest.skip("no nginx on this machine (Debian: apt-get install nginx)")
    folder = tmp_path_factory.mktemp("nginx")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (folder / "site").symlink_to(shards.folder)
    user = "user root;" if os.getuid() == 0 else ""
    names = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    paths = " ".join(f"{name}_temp_path {folder}/{name};" for name in names)
    (folder / "nginx.conf").write_text(
        f"{user} daemon off; pid {folder}/pid; error_log {folder}/error.log;\n"
        f"events {{}} http {{ access_log {folder}/access.log; {paths} gzip on; gzip_types *;\n"
        f"server {{ listen 127.0.0.1:{port}; root {folder}; }} }}\n"
    )
    server = subprocess.Popen([program, "-e", f"{folder}/error.log", "-c", f"{folder}/nginx.conf"])
    try:
        for _ in range(200):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.02)
        yield f"http://127.0.0.1:{port}/site"
    finally:
        server.terminate()
        server.wait()


def test_a_real_web_server(shards: ShardSet, nginx: str, tmp_path: Path) -> None:
    assert pull(nginx, tmp_path / "mine").id == shards.id
    assert is_copy(tmp_path / "mine", shards)
    remote = open_set(nginx, cache=tmp_path / "cache")
    assert remote.record(11) == shards.record(11)
    # Half of a shard is there already: the server is asked for the rest only.
    shard = shards.manifest.shards[0]
    half = (shards.folder / shard.name).read_bytes()[: shard.bytes // 2]
    path = remote.place.path(shard.sha256)  # type: ignore[union-attr]
    path.parent.mkdir(parents=True, exist_ok=True)
    download.partial_name(path).write_bytes(half)
    assert remote.record(0) == shards.record(0)
    with pytest.raises(ShardError, match="404"):
        open_set(f"{nginx}/nothing")


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An empty bucket of a real S3 protocol server."""
    import s3fs
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    s3fs.S3FileSystem.clear_instance_cache()
    s3fs.S3FileSystem().mkdir("bucket")
    yield "s3://bucket/sets/digits"
    server.stop()
    s3fs.S3FileSystem.clear_instance_cache()


def test_an_s3_server(
    shards: ShardSet, make_set, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import s3fs

    from clsp.shards import remote

    monkeypatch.setattr(remote, "_S3_PIECE", 2000)  # several requests for each shard
    with pytest.raises(ShardError, match=r"manifest\.json"):
        open_set(bucket, cache=tmp_path / "cache")
    assert push(shards.folder, bucket, source_license="mit").id == shards.id
    files = s3fs.S3FileSystem(use_listings_cache=False)
    assert "bucket/sets/digits/secret.txt" not in files.find(bucket)
    before = {path: files.info(path)["LastModified"] for path in files.find(bucket)}
    push(shards.folder, bucket, source_license="mit")
    assert {path: files.info(path)["LastModified"] for path in files.find(bucket)} == before
    assert pull(bucket, tmp_path / "mine").id == shards.id
    assert is_copy(tmp_path / "mine", shards)
    assert open_set(bucket, cache=tmp_path / "cache").record(5) == shards.record(5)
    with pytest.raises(ShardError, match=f"holds set {shards.id[:12]}"):
        push(make_set(tmp_path / "other", sizes=(4,)).folder, bucket, source_license="mit")
    files.pipe_file(f"{bucket}/data/train-00001.tar", b"other bytes")
    with pytest.raises(ShardError, match=r"train-00001\.tar is there with other bytes"):
        push(shards.folder, bucket, source_license="mit")
    with pytest.raises(ShardError, match=r"train-00001\.tar"):
        open_set(bucket, cache=tmp_path / "cold").record(5)
    with pytest.raises(ShardError, match=r"train-00001\.tar"):
        pull(bucket, tmp_path / "damaged")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hub on the loopback, which the real client library takes for the real one."""
    from huggingface_hub import constants

    with Hub() as hub:
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, hub.endpoint)
        monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        yield hub


def test_the_hub(shards: ShardSet, copy: Path, hub: Hub, tmp_path: Path) -> None:
    address = "hf://datasets/me/digits"
    with pytest.raises(ShardError, match="404"):
        pull(address, tmp_path / "none")
    push(shards.folder, address, source_license="mit")
    commits = hub.repositories["me/digits"]["main"]
    assert ["manifest.json" in files for files in commits] == [False, False, False, True]
    assert "secret.txt" not in commits[-1]
    first = hub.commit("me/digits", "main")
    assert first is not None

    (copy / "LICENSE").write_text("CC0-1.0\n")
    push(copy, address, source_license="mit")
    assert hub.uploads == 3  # of three shards; nothing was sent twice
    pull(f"{address}@{first[0]}", tmp_path / "first")
    assert is_copy(tmp_path / "first", shards)
    pull(f"{address}@main", tmp_path / "second")
    assert (tmp_path / "second" / "LICENSE").read_text() == "CC0-1.0\n"

    remote = open_set(address, cache=tmp_path / "cache")
    commits.append({})  # what is pushed meanwhile does not change what was opened
    assert remote.record(9) == shards.record(9)
    push(shards.folder, f"{address}@v2", source_license="mit")
    assert hub.commit("me/digits", "v2") is not None
    with pytest.raises(ShardError, match="Revision Not Found"):
        open_set(f"{address}@v9")
    assert hub.leaked == 0  # the token stays with the Hub


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("ftp://host/set", "expected a path, http"),
        ("https://host/set?token=1", "names of files can be added"),
        ("https://me:hunter2@host/set?x=1", "https://host/set: expected no name and password"),
        ("s3://me:hunter2@bucket/set", "s3://bucket/set: expected no name and password"),
        ("hf://models/me/digits", "expected hf://datasets/OWNER/NAME"),
        ("hf://datasets/me/../../x", "expected hf://datasets/OWNER/NAME"),
    ],
)
def test_an_address_that_is_none(address: str, message: str, tmp_path: Path) -> None:
    result = clsp_shards("pull", address, tmp_path / "mine")
    assert result.exit_code == 1
    assert message in result.output
    assert "hunter2" not in result.output
    assert not (tmp_path / "mine").exists()


def test_a_password_is_never_kept_or_sent_anywhere(shards: ShardSet, tmp_path: Path) -> None:
    result = clsp_shards("push", own(shards, tmp_path).folder, "s3://me:hunter2@bucket", *LICENSES)
    assert "expected no name and password" in result.output
    view = ["join", "https://me:hunter2@host/set", "--anchors", "digits", "--out", tmp_path / "v"]
    assert "expected no name and password" in clsp_shards(*view).output
    assert not (tmp_path / "v").exists()


class Redirects(http.server.BaseHTTPRequestHandler):
    """Sends every request elsewhere: to `target`, with a signature in the query."""

    target = ""

    def do_GET(self) -> None:
        self.send_response(302)
        self.send_header("Location", f"{self.target}{self.path}?signature=secret")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        return


@pytest.fixture
def redirects() -> Iterator[tuple[type[Redirects], str]]:
    handler = type("Handler", (Redirects,), {})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield handler, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_redirect_ends_well_or_in_an_error_without_its_signature(
    shards: ShardSet, redirects: tuple[type[Redirects], str], tmp_path: Path
) -> None:
    handler, address = redirects
    with socket.socket() as nobody:  # kept bound and never listening, so that nobody else is there
        nobody.bind(("127.0.0.1", 0))
        for target, message in (
            (address, "Exceeded 30 redirects"),
            (f"http://127.0.0.1:{nobody.getsockname()[1]}", "Connection refused"),
            ("file:///etc/passwd", "No connection adapters"),
        ):
            handler.target = target
            with pytest.raises(ShardError, match=message) as error:
                open_set(f"{address}/set", cache=tmp_path)
            assert "secret" not in str(error.value)


def test_an_encrypted_address_is_not_left_for_one_that_is_not(monkeypatch) -> None:
    def get(url: str, **_: object) -> requests.Response:
        response = requests.Response()
        response.raw = io.BytesIO()
        response.url, response.status_code = "http://elsewhere/set/x?signature=secret", 200
        return response

    monkeypatch.setattr(requests, "get", get)
    with pytest.raises(ShardError, match="http://elsewhere/set/x, unencrypted"):
        open_source("https://host/set").open("manifest.json")
