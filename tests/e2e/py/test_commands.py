# SPDX-License-Identifier: Apache-2.0
"""Commands and terminals with the official Python package."""

import threading

import pytest
from conftest import until
from e2b import CommandExitException, NotFoundException, PtySize, TimeoutException


def test_foreground(box):
    result = box.commands.run("echo out; echo err >&2; echo $LEVEL $MORE; pwd", envs={"MORE": "x"}, cwd="/tmp")
    assert (result.stdout, result.stderr, result.exit_code) == ("out\nsandbox x\n/tmp\n", "err\n", 0)
    with pytest.raises(CommandExitException) as failed:
        box.commands.run("echo said; exit 7")
    assert (failed.value.exit_code, failed.value.stdout) == (7, "said\n")
    assert box.commands.run("id -u", user="root").stdout == "0\n"
    with pytest.raises(Exception):
        box.commands.run("true", cwd="/no/such/dir")


def test_streaming(box):
    pieces = []
    box.commands.run("echo a; echo b >&2; echo c", on_stdout=pieces.append, on_stderr=pieces.append)
    assert sorted("".join(pieces)) == sorted("a\nb\nc\n")
    assert len(box.commands.run("head -c 3000000 /dev/zero | tr '\\0' x").stdout) == 3_000_000


def test_background_stdin_and_list(box):
    handle = box.commands.run("read -r a; echo got $a; cat; exit 3", background=True, stdin=True)
    assert handle.pid in [entry.pid for entry in box.commands.list()]
    box.commands.send_stdin(handle.pid, "it\n")
    handle.send_stdin(b"more")
    handle.close_stdin()
    with pytest.raises(CommandExitException) as ended:
        handle.wait()
    assert (ended.value.stdout, ended.value.exit_code) == ("got it\nmore", 3)
    other = box.commands.run("cat", background=True, stdin=True)
    box.commands.close_stdin(other.pid)
    assert other.wait().exit_code == 0


def test_connect_kill_and_disconnect(box):
    handle = box.commands.run("sleep 600", background=True, timeout=0)
    handle.disconnect()
    again = box.commands.connect(handle.pid)
    assert again.pid == handle.pid
    assert again.kill() is True
    with pytest.raises(CommandExitException) as ended:
        again.wait()
    assert ended.value.exit_code == -1
    assert box.commands.kill(999_999) is False
    with pytest.raises(NotFoundException):
        box.commands.connect(999_999)
    with pytest.raises(NotFoundException):
        box.commands.send_stdin(999_999, "x")


def test_a_timeout_kills_the_command(box):
    with pytest.raises(TimeoutException):
        box.commands.run("echo $$ > /tmp/slow; exec sleep 600", timeout=1)
    gone = 'kill -0 "$(cat /tmp/slow)" 2>/dev/null && echo alive || echo gone'
    until(lambda: box.commands.run(gone).stdout == "gone\n", "the end of the command")


def test_a_terminal(box):
    text = bytearray()
    terminal = box.pty.create(PtySize(rows=31, cols=97), timeout=0)
    reader = threading.Thread(target=lambda: drain(terminal, text))
    reader.start()
    box.pty.send_stdin(terminal.pid, b"stty size\n")
    until(lambda: b"31 97" in text, "the size")
    box.pty.resize(terminal.pid, PtySize(rows=25, cols=80))
    box.pty.send_stdin(terminal.pid, b"stty size\n")
    until(lambda: b"25 80" in text, "the new size")
    other = box.pty.connect(terminal.pid)
    assert other.pid == terminal.pid
    assert box.pty.kill(terminal.pid) is True
    reader.join(10)
    assert not reader.is_alive()
    assert box.pty.kill(terminal.pid) is False


def drain(terminal, text):
    try:
        terminal.wait(on_pty=text.extend)
    except CommandExitException:
        pass


def test_streamed_input(box):
    """commands.stream_input sends what comes, as one request."""
    handle = box.commands.run("wc -c", background=True, stdin=True)
    box.commands.stream_input(handle.pid, (b"x" * 50_000 for _ in range(10)))
    box.commands.close_stdin(handle.pid)
    assert handle.wait().stdout.strip() == "500000"
    terminal = box.pty.create(PtySize(rows=10, cols=40), timeout=0)
    box.pty.stream_input(terminal.pid, [b"exit ", b"5\n"])
    with pytest.raises(CommandExitException) as ended:
        terminal.wait()
    assert ended.value.exit_code == 5
