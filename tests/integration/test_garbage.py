# SPDX-License-Identifier: Apache-2.0
"""Garbage and truncated frames from either side: the agent goes on serving others; the client says what is wrong."""
import os
import pathlib
import random
import socket
import struct
import time

import nbtest
from nbtest import wait_for

SEED = int(os.environ.get("NEARBOX_TEST_SEED", "11"))
HELLO, WELCOME, REFUSED, CALL, NOTE = 1, 2, 3, 4, 11  # FrameType
MAGIC = b"NEARBOX1"
VERSION = 2  # of the protocol


def frame(kind, payload, length=None, flags=0, code=0, call=0):
    """docs/protocol.md, "Frames"; `length` may lie."""
    return struct.pack("<IBBHI", len(payload) if length is None else length, kind, flags, code, call) + payload


def hello(token, magic=MAGIC, version=VERSION, role=0, build=b"test", build_length=None):
    size = len(build) if build_length is None else build_length
    return magic + struct.pack("<HB", version, role) + token + b"\7" * 16 + struct.pack("<I", size) + build


class FromTheClient(nbtest.Case):
    """What connects to the agent's socket breaks the rules."""

    def setUp(self):
        super().setUp()
        self.rng = random.Random(SEED)
        self.box = self.stand_in()
        self.nb("exec", self.box, "--", "true")
        self.socket_path = str(next(pathlib.Path(self.home / "agent").glob("*.sock")))
        state = next(pathlib.Path(self.home / "agent").glob("*.json")).read_text()
        self.token = bytes.fromhex(state.split('"token":"')[1].split('"')[0])
        self.agent = self.processes("nearbox-agent", "serve")

    def send(self, data, end=False, hello_first=False):
        """Sends, and gives what the agent answers until it closes; fails when it does not. `hello_first` waits for
        the Welcome before the rest: a socket closed with bytes unread forgets what was on its way back."""
        with socket.socket(socket.AF_UNIX) as s:
            s.settimeout(20)
            s.connect(self.socket_path)
            answer = b""
            if hello_first:
                s.sendall(frame(HELLO, hello(self.token)))
                answer = s.recv(65536)
                self.assertEqual(answer[4:5], bytes([WELCOME]), answer)
            try:
                s.sendall(data)
                if end:
                    s.shutdown(socket.SHUT_WR)
                while True:
                    part = s.recv(65536)
                    if not part:
                        return answer
                    answer += part
            except (ConnectionResetError, BrokenPipeError):
                return answer
            except socket.timeout:
                self.fail(f"the agent keeps a connection that sent {data[:60]!r}… ({len(data)} bytes)")

    def tearDown(self):
        self.assertEqual(self.nb("exec", self.box, "--", "echo", "fine").stdout, b"fine\n")
        self.assertEqual(self.processes("nearbox-agent", "serve"), self.agent, "the same agent serves on")

    def test_random_bytes(self):
        for size in (12, 13, 100, 4096, 100_000):
            for _ in range(20):
                self.assertEqual(self.send(self.rng.randbytes(size), end=True), b"")

    def test_hello_cut_short(self):
        whole = frame(HELLO, hello(self.token))
        for size in range(len(whole)):
            self.assertEqual(self.send(whole[:size], end=True), b"", size)

    def test_silent_stranger_is_closed(self):
        self.send(frame(HELLO, hello(self.token))[:20])

    def test_malformed_hello(self):
        good = hello(self.token)
        for data in (frame(HELLO, hello(self.token, magic=b"NEARBOX2")), frame(HELLO, hello(self.token, role=2)),
                     frame(HELLO, good + b"x"), frame(HELLO, good, flags=1), frame(HELLO, good, flags=0x80),
                     frame(HELLO, hello(self.token, build_length=0xFFFFFFFF)),
                     frame(HELLO, hello(self.token, build=b"x" * 5000)), frame(WELCOME, good), frame(CALL, good),
                     frame(0, good), frame(12, good), frame(255, good), frame(HELLO, b"")):
            self.assertEqual(self.send(data), b"", data[:80])

    def test_huge_lengths(self):
        for length in (8193, 32 * 1024, 32 * 1024 + 1, 0x7FFFFFFF, 0xFFFFFFFF):
            self.assertEqual(self.send(frame(HELLO, hello(self.token), length=length)), b"", length)

    def test_wrong_token(self):
        for token in (b"\0" * 32, self.token[::-1], self.token[:31] + bytes([self.token[31] ^ 1])):
            answer = self.send(frame(HELLO, hello(token)))
            self.assertEqual(answer[4], REFUSED, answer)
            self.assertEqual(struct.unpack_from("<i", answer, 12)[0], 13, answer)  # EACCES
            self.assertNotIn(self.token, answer)

    def test_wrong_version(self):
        answer = self.send(frame(HELLO, hello(self.token, version=99)))
        self.assertEqual(answer[4], REFUSED, answer)
        self.assertEqual(struct.unpack_from("<i", answer, 12)[0], 71, answer)  # EPROTO

    def test_frames_that_break_a_rule(self):
        """After a good hello: each closes this connection alone."""
        head = struct.pack("<II", 1000, 1000)
        for data in (frame(CALL, b"x" * 10, length=32 * 1024 + 1), frame(0, b""), frame(200, b""),
                     frame(HELLO, hello(self.token)), frame(WELCOME, b""), frame(CALL, b"", code=1, call=1),
                     frame(CALL, b"", flags=1, code=1, call=1), frame(CALL, head, flags=2, code=1, call=1),
                     frame(CALL, struct.pack("<II", 0xFFFFFFFF, 0), code=1, call=1),
                     b"".join(frame(CALL, head, flags=1, code=1, call=i) for i in range(1, 18)),
                     frame(CALL, head + b"x" * 8000, flags=1, code=1, call=1) * 300):
            self.send(data, hello_first=True)

    def test_noise_after_hello(self):
        for _ in range(30):
            self.send(self.rng.randbytes(2000), end=True, hello_first=True)
        # Well-formed frames with random contents: answered with errors, or the connection is closed.
        for _ in range(30):
            data = b"".join(frame(self.rng.choice((CALL, NOTE)),
                                  struct.pack("<II", 1000, 1000) + self.rng.randbytes(self.rng.randrange(200)),
                                  code=self.rng.randrange(40), call=call) for call in range(1, 30))
            self.send(data, end=True, hello_first=True)

    def test_many_strangers(self):
        """Connections without a hello, more than the agent takes: they go, and others come in again."""
        many = []
        for _ in range(100):
            s = socket.socket(socket.AF_UNIX)
            s.connect(self.socket_path)
            many.append(s)
        for s in many:
            s.close()


# Stands for `docker exec -i NAME sh -c SCRIPT`: a program that breaks off or talks nonsense.
BAD_DOCKER = r'''#!/usr/bin/python3
import os, random, struct, sys, time
mode, seed = os.environ["NB_BAD"].split(":")
rng = random.Random(int(seed))
script = sys.argv[-1]
build = script.split("h=")[1].split(";")[0]
version = int(os.environ["NB_VERSION"])
def out(data):
    os.write(1, data)
first = f"nearbox-have\nnearbox-agent {build} {'ab' * 32}\n".encode()
welcome_body = struct.pack("<HQ?QIQ", version, 5, False, 0, 60, 0) + struct.pack("<I", 4) + b"test"
welcome = struct.pack("<IBBHI", len(welcome_body), 2, 0, 0, 0) + welcome_body
try:
    if mode == "garbage-at-once": out(rng.randbytes(100000))
    elif mode == "garbage-after-have": out(b"nearbox-have\n" + rng.randbytes(100000))
    elif mode == "garbage-after-first-line": out(first + rng.randbytes(5000))
    elif mode == "other-build": out(b"nearbox-have\nnearbox-agent 0123456789abcdef " + b"ab" * 32 + b"\n")
    elif mode == "bad-token": out(f"nearbox-have\nnearbox-agent {build} xyz\n".encode())
    elif mode == "no-line-end": out(b"nearbox-have" + b"x" * 200000)
    elif mode == "closes": out((first + welcome)[:rng.randrange(len(first + welcome))]); sys.exit(rng.randrange(3))
    elif mode == "truncated-welcome": out(first + welcome[:30]); sys.exit(0)
    elif mode == "huge-welcome": out(first + struct.pack("<IBBHI", 0xffffffff, 2, 0, 0, 0) + b"x" * 1000)
    elif mode == "long-welcome": out(first + struct.pack("<IBBHI", 9000, 2, 0, 0, 0) + b"x" * 9000)
    elif mode == "refused-nonsense": out(first + struct.pack("<IBBHI", 8, 3, 0, 0, 0) + b"\0" * 8)
    elif mode == "garbage-after-welcome": out(first + welcome + rng.randbytes(5000))
    elif mode == "closes-after-welcome": out(first + welcome); sys.exit(0)
    elif mode == "silent": pass
    elif mode == "silent-after-first-line": out(first)
    else: sys.exit(99)
    while os.read(0, 65536): pass
except OSError:
    pass
'''


class FromTheSandbox(nbtest.Case):
    """What should be the agent breaks the rules."""

    def setUp(self):
        super().setUp()
        script = self.home / "docker"
        script.write_text(BAD_DOCKER)
        script.chmod(0o755)
        self.env["NEARBOX_DOCKER"] = str(script)

    def refused(self, mode, *texts, name="docker:bad", seed=SEED, timeout=4):
        self.env["NB_BAD"] = f"{mode}:{seed}"
        self.env["NB_VERSION"] = str(VERSION)
        begun = time.monotonic()
        done = self.nb("exec", "docker:bad", "--connect-timeout", str(timeout), "--", "true", code=125, timeout=60)
        self.check(done.stderr.decode(errors="replace"), (name, *texts))
        done = self.nb("mount", "docker:bad", self.mnt, "--timeout", str(timeout), code=None, timeout=60)
        self.assertIn(done.returncode, (7, 8), (mode, done.stderr))
        self.check(done.stderr.decode(errors="replace"), (name, *texts))
        self.assertLess(time.monotonic() - begun, 2 * timeout + 4, mode)
        self.assertEqual(nbtest.mounts_below(str(self.home)), [])

    def check(self, message, texts):
        self.assertTrue(message.startswith("nearbox: "), message)
        self.assertEqual(message.count("\n"), 1, message)
        self.assertTrue(message.rstrip("\n").isprintable(), repr(message))
        for text in texts:
            self.assertIn(text, message)

    def tearDown(self):
        wait_for(lambda: not nbtest.descendants_of_home(self.home), "nothing is left running", 30)

    def test_garbage_at_once(self):
        self.refused("garbage-at-once")

    def test_garbage_after_have(self):
        self.refused("garbage-after-have")

    def test_garbage_after_first_line(self):
        self.refused("garbage-after-first-line")

    def test_wrong_words(self):
        self.refused("other-build", "not the one that was sent")
        self.refused("bad-token")

    def test_no_line_end(self):
        self.refused("no-line-end")

    def test_closes_anywhere(self):
        for seed in range(6):
            self.refused("closes", seed=seed)

    def test_welcomes(self):
        for mode in ("truncated-welcome", "huge-welcome", "long-welcome", "refused-nonsense"):
            self.refused(mode)

    def test_after_the_welcome(self):
        self.refused("garbage-after-welcome", name="")
        self.refused("closes-after-welcome", name="")

    def test_silent(self):
        self.refused("silent")
        self.refused("silent-after-first-line")


if __name__ == "__main__":
    nbtest.main()
