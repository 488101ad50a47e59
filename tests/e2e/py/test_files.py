# SPDX-License-Identifier: Apache-2.0
"""Files and watches with the official Python package."""

import io

import pytest
from conftest import until
from e2b import FileNotFoundException, FilesystemEventType, FileType, InvalidArgumentException
from e2b.sandbox.filesystem.filesystem import WriteEntry

BYTES = bytes(i * 31 % 251 for i in range(1_500_000))


def pieces():
    for at in range(0, len(BYTES), 100_000):
        yield BYTES[at : at + 100_000]


def test_write_and_read_in_every_form(box):
    info = box.files.write("notes/a b.txt", "text ä")
    assert info.path == "/home/user/notes/a b.txt"
    assert box.files.read("notes/a b.txt") == "text ä"
    box.files.write("bytes", BYTES)
    box.files.write("octets", BYTES, use_octet_stream=True)
    box.files.write("io", io.BytesIO(BYTES))
    box.files.write("iterable", pieces())
    box.files.write("zipped", BYTES, gzip=True)
    for name in ("bytes", "octets", "io", "iterable", "zipped"):
        assert box.files.read(name, format="bytes") == BYTES, name
    assert box.files.read("bytes", format="bytes", gzip=True) == BYTES
    with box.files.read("bytes", format="stream") as stream:
        assert b"".join(stream) == BYTES
    with box.files.read("bytes", format="stream", gzip=True) as stream:
        assert b"".join(stream) == BYTES
    box.files.write("empty", "")
    assert box.files.read("empty") == ""


def test_write_files(box):
    made = box.files.write_files([WriteEntry(path=f"many/{n}/f", data=f"file {n}") for n in range(30)])
    assert [entry.path for entry in made][:2] == ["/home/user/many/0/f", "/home/user/many/1/f"]
    assert box.files.read("many/29/f") == "file 29"
    box.files.write_files([WriteEntry(path="root.txt", data=b"r")], user="root")
    assert box.files.read("/root/root.txt", user="root") == "r"


def test_metadata(box):
    box.files.write("meta", "x", metadata={"Kind": "note"})
    assert box.files.get_info("meta").metadata == {"kind": "note"}


def test_directories(box):
    assert box.files.make_dir("tree/sub") is True
    assert box.files.make_dir("tree/sub") is False
    box.files.write("tree/sub/f.txt", "x")
    box.commands.run("ln -s sub/f.txt tree/link")
    assert [entry.name for entry in box.files.list("tree")] == ["link", "sub"]
    assert len(box.files.list("tree", depth=2)) == 3
    moved = box.files.rename("tree/sub/f.txt", "tree/other/g.txt")
    assert moved.path == "/home/user/tree/other/g.txt"
    assert box.files.exists("tree/other/g.txt") and not box.files.exists("tree/sub/f.txt")
    info = box.files.get_info("tree/other/g.txt")
    assert (info.size, info.owner, info.type) == (1, "user", FileType.FILE)
    box.files.remove("tree")
    assert not box.files.exists("tree")
    box.files.remove("tree")


def test_what_is_missing_is_said_so(box):
    with pytest.raises(FileNotFoundException):
        box.files.read("no/such/file")
    with pytest.raises(FileNotFoundException):
        box.files.list("no/such/dir")
    with pytest.raises(FileNotFoundException):
        box.files.rename("no/such", "other")
    with pytest.raises(Exception):
        box.files.read("/home/user")


def test_polled_watches(box):
    box.files.make_dir("watch/below")
    handle = box.files.watch_dir("watch")
    assert handle.get_new_events() == []
    box.files.write("watch/f.txt", "one")
    box.files.rename("watch/f.txt", "watch/g.txt")
    box.files.remove("watch/g.txt")
    box.files.write("watch/below/unseen", "")
    box.files.write("watch/last", "")
    seen = []

    def last():
        seen.extend((event.type, event.name) for event in handle.get_new_events())
        return (FilesystemEventType.CREATE, "last") in seen

    until(last, "the last event")
    for event in (
        (FilesystemEventType.CREATE, "f.txt"),
        (FilesystemEventType.WRITE, "f.txt"),
        (FilesystemEventType.RENAME, "f.txt"),
        (FilesystemEventType.CREATE, "g.txt"),
        (FilesystemEventType.REMOVE, "g.txt"),
    ):
        assert event in seen
    assert not any("unseen" in name for _, name in seen)
    handle.stop()
    with pytest.raises(Exception, match="already stopped"):
        handle.get_new_events()


def test_polled_watches_of_a_tree(box):
    box.files.make_dir("deep/a/b")
    handle = box.files.watch_dir("deep", recursive=True, include_entry=True)
    box.commands.run("mkdir -p deep/n/e && echo x > deep/n/e/file && echo y > deep/a/b/file")
    seen = {}

    def both():
        seen.update({event.name: event for event in handle.get_new_events() if event.entry})
        return {"n/e/file", "a/b/file"} <= seen.keys()

    until(both, "both files")
    assert seen["a/b/file"].entry.path == "/home/user/deep/a/b/file"
    handle.stop()


def test_watches_that_cannot_be(box):
    with pytest.raises(FileNotFoundException):
        box.files.watch_dir("no/such")
    box.files.write("plain-file", "")
    with pytest.raises(InvalidArgumentException):
        box.files.watch_dir("plain-file")
