"""Downloads from a local server: once, with checksum, resumed after a cut connection."""

import gzip
import hashlib
import io
import struct
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from deepclust_jax import data
from deepclust_jax.data import download, newsgroups, sources

CONTENT = np.random.default_rng(0).integers(0, 256, 300_000, dtype=np.uint8).tobytes()
MD5 = "md5:" + hashlib.md5(CONTENT).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """Serves `server.files`, cuts answers after `server.cuts.pop(0)` bytes, notes the ranges."""

    def do_GET(self):
        """Answer with a file, or the rest of it."""
        content = self.server.files.get(self.path)
        wanted = self.headers.get("Range")
        self.server.requests.append(wanted)
        if content is None:
            return self.send_error(404)
        start = int(wanted[6:-1]) if wanted and self.server.ranges else 0
        if start >= len(content) > 0:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(content)}")
            self.send_header("Content-Length", "0")
            return self.end_headers()
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        cut = self.server.cuts.pop(0) if self.server.cuts else len(content)
        self.wfile.write(content[start : start + cut])
        if cut < len(content) - start:
            self.close_connection = True

    def log_message(self, *_):
        """Nothing on stderr."""


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setenv("DEEPCLUST_CACHE", str(tmp_path / "cache"))
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.files, server.cuts, server.requests, server.ranges = {"/f": CONTENT}, [], [], True
        server.url = f"http://127.0.0.1:{server.server_port}/"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def test_downloaded_once_and_silently(server, capfd):
    path = download.fetch([server.url + "f"], MD5, "f.bin")
    assert path.read_bytes() == CONTENT and path.parent == download.cache_folder()
    assert download.fetch([server.url + "f"], MD5, "f.bin") == path
    assert len(server.requests) == 1
    assert [p.name for p in path.parent.iterdir()] == ["f.bin"]
    assert capfd.readouterr().err == ""


def test_cut_connection_is_resumed(server):
    server.cuts = [100_000, 50_000]
    path = download.fetch([server.url + "f"], MD5, "f.bin")
    assert path.read_bytes() == CONTENT
    assert server.requests == [None, "bytes=100000-", "bytes=150000-"]


def test_next_run_goes_on_where_this_one_stopped(server):
    server.cuts = [1000] * download.ATTEMPTS
    with pytest.raises(data.DataError, match="3000 bytes kept: run again to continue") as caught:
        download.fetch([server.url + "f"], MD5, "f.bin")
    assert "\n" not in str(caught.value)
    assert download.fetch([server.url + "f"], MD5, "f.bin").read_bytes() == CONTENT
    assert server.requests[-1] == "bytes=3000-"


def test_server_without_ranges_starts_anew(server):
    server.ranges, server.cuts = False, [1000]
    assert download.fetch([server.url + "f"], MD5, "f.bin").read_bytes() == CONTENT


@pytest.mark.parametrize("part", [CONTENT, CONTENT + b"more", b"another file"])
def test_partial_file_that_is_complete_or_wrong(server, part):
    download.cache_folder().mkdir(parents=True)
    (download.cache_folder() / "f.bin.part").write_bytes(part)
    assert download.fetch([server.url + "f"], MD5, "f.bin").read_bytes() == CONTENT


def test_wrong_checksum_is_refused(server):
    server.files["/bad"] = CONTENT[:-1] + b"x"
    with pytest.raises(data.DataError, match="does not have the checksum md5:") as caught:
        download.fetch([server.url + "bad"], MD5, "f.bin")
    assert "\n" not in str(caught.value)
    assert list(download.cache_folder().iterdir()) == []
    assert len(server.requests) == 1  # the same bytes again would not help
    path = download.fetch([server.url + "bad", server.url + "f"], MD5, "f.bin")  # a second mirror
    assert path.read_bytes() == CONTENT


def test_no_source_works(server, tmp_path, monkeypatch):
    with pytest.raises(data.DataError, match="cannot download f.bin: HTTPError"):
        download.fetch([server.url + "gone"], MD5, "f.bin")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DEEPCLUST_CACHE", str(tmp_path / "file"))
    with pytest.raises(data.DataError, match="set DEEPCLUST_CACHE to another folder"):
        download.fetch([server.url + "f"], MD5, "f.bin")


def idx(values):
    head = bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape)
    return gzip.compress(head + values.astype(np.uint8).tobytes())


def test_where_no_source_works_the_file_that_would_do_is_named(server, tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "CIFAR10", server.url + "gone")
    monkeypatch.delenv("DEEPCLUST_DATA_DIR", raising=False)
    end = "cifar10 also takes the file cifar10_10k.npz in the folder DEEPCLUST_DATA_DIR: "
    with pytest.raises(data.DataError, match=end + "DEEPCLUST_DATA_DIR is not set"):
        data.load("cifar10")
    monkeypatch.setenv("DEEPCLUST_DATA_DIR", str(tmp_path))
    with pytest.raises(data.DataError, match=f"{end}found no {tmp_path}/cifar10_10k.npz"):
        data.load("cifar10")
    monkeypatch.setenv("DEEPCLUST_DATA_DIR", str(tmp_path / "gone"))
    with pytest.raises(data.DataError, match=f"no folder {tmp_path}/gone, which DEEPCLUST_DATA"):
        data.load("cifar10")


def test_named_set_from_its_mirror(server, monkeypatch):
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (9, 28, 28))
    labels = np.arange(9) % 10
    parts = (pictures[:6], pictures[6:], labels[:6], labels[6:])
    md5 = []
    for name, part in zip(sources.IDX_FILES, parts, strict=True):
        server.files[f"/{name}"] = idx(part)
        md5.append(hashlib.md5(server.files[f"/{name}"]).hexdigest())
    monkeypatch.delenv("DEEPCLUST_DATA_DIR", raising=False)
    monkeypatch.setattr(sources, "MNIST_MIRRORS", (server.url,))
    monkeypatch.setattr(sources, "MNIST_MD5", tuple(md5))
    dataset, found = data.load("mnist")
    np.testing.assert_array_equal(dataset.raw[..., 0], pictures)
    np.testing.assert_array_equal(found, labels)
    assert (dataset.kind, dataset.n_clusters) == ("image", 10)


def archive(path, members):
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def test_cifar_archive(tmp_path):
    planes = np.random.default_rng(0).integers(0, 256, (4, 3, 32, 32), dtype=np.uint8)
    rows = [bytes([i]) + picture.tobytes() for i, picture in enumerate(planes)]
    batches = {"d/test_batch.bin": b"".join(rows[2:]), "d/data_batch_1.bin": b"".join(rows[:2])}
    path = archive(tmp_path / "c.tar.gz", batches)
    pictures, labels = sources.read_cifar(path, ("data_batch_1.bin", "test_batch.bin"))
    np.testing.assert_array_equal(labels, [0, 1, 2, 3])
    assert pictures[2, 5, 7, 1] == planes[2, 1, 5, 7]
    np.testing.assert_array_equal(pictures.transpose(0, 3, 1, 2), planes)


def test_newsgroup_archive(tmp_path):
    message = "From: a@b\n\nBody caf\xe9\n> quoted\n\n-- \nname"
    names = ["20news-bydate-test/b.two/7", "20news-bydate-train/b.two/10"]
    names += ["20news-bydate-train/a.one/9", "20news-bydate-train/a.one/10"]
    members = {name: f"{message}{name}".encode("latin1") for name in names}
    members["20news-bydate-train/a.one/10"] = b"From: c\n\nFirst"
    texts, labels = sources.read_newsgroups(archive(tmp_path / "n.tar.gz", members))
    assert labels.tolist() == [0, 0, 1, 1]
    assert texts[0] == "First" and texts[1].strip() == "Body caf\xe9"
    assert newsgroups.body("no header") == ""
