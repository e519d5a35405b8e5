"""Files are whole or not there: writers that fail, stop or race leave what was there before."""

import hashlib
import os
import subprocess
import sys
import threading

import pytest

from helpers import files


def test_the_hash_is_that_of_the_bytes(tmp_path):
    content = bytes(range(256)) * 5000
    (tmp_path / "a").write_bytes(content)
    assert files.sha256(tmp_path / "a") == hashlib.sha256(content).hexdigest() == files.sha256(str(tmp_path / "a"))


def test_only_64_digits_are_a_hash():
    digest = hashlib.sha256(b"").hexdigest()
    assert files.is_sha256(digest)
    for other in (None, "", 0, digest[1:], digest + "\n", digest.upper(), "x" * 64, [digest]):
        assert not files.is_sha256(other), other


@pytest.mark.parametrize("content", ["näher\r\nund\n", b"\0\xff\r\n", ""])
def test_what_is_written_is_there_byte_by_byte(tmp_path, content):
    files.write(tmp_path / "deep" / "er" / "a.txt", content)
    wanted = content.encode("utf-8") if isinstance(content, str) else content
    assert (tmp_path / "deep" / "er" / "a.txt").read_bytes() == wanted
    assert [path.name for path in (tmp_path / "deep" / "er").iterdir()] == ["a.txt"]


def test_an_error_leaves_the_old_files_and_no_other(tmp_path):
    for name in "ab":
        files.write(tmp_path / name, "old")
    with pytest.raises(KeyboardInterrupt), files.replacing(tmp_path / "a", tmp_path / "b") as (a, b):
        a.write_text("new")
        b.write_text("ne")
        raise KeyboardInterrupt
    with (
        pytest.raises(FileNotFoundError, match=r"b is left as it was"),
        files.replacing(tmp_path / "a", tmp_path / "b") as (a, _),
    ):
        a.write_text("new")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a": "old", "b": "old"}
    with files.replacing(tmp_path / "a", tmp_path / "b") as (a, b):
        a.write_text("new a")
        b.write_text("new b")
        assert (tmp_path / "a").read_text() == "old"
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a": "new a", "b": "new b"}


@pytest.mark.fault(
    "Claims and results", "a program that is killed while it writes a file", "the file from before stays whole"
)
def test_a_killed_writer_leaves_the_old_file(tmp_path):
    files.write(tmp_path / "a.csv", "old")
    code = f"""
import time
from helpers import files
with files.replacing({str(tmp_path / "a.csv")!r}) as (part,):
    part.write_text("half of what was to be wri")
    print("in the middle of it", flush=True)
    time.sleep(600)
"""
    environment = {**os.environ, "PYTHONPATH": str(files.ROOT)}
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment) as run:
        assert run.stdout.readline().strip() == "in the middle of it"
        run.kill()
    assert (tmp_path / "a.csv").read_text() == "old"
    assert list(tmp_path.rglob("*.csv")) == [tmp_path / "a.csv"]  # what it left is not taken for a table


def test_a_reader_never_meets_half_a_file(tmp_path):
    path, stop, seen = tmp_path / "a", threading.Event(), set()
    versions = [str(digit) * 200_000 for digit in range(2)]
    files.write(path, versions[0])

    def read():
        while not stop.is_set():
            seen.add(path.read_text())

    reader = threading.Thread(target=read)
    reader.start()
    for turn in range(200):
        files.write(path, versions[turn % 2])
    stop.set()
    reader.join()
    assert seen <= set(versions)
