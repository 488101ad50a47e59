# SPDX-License-Identifier: Apache-2.0
"""No worker waits: with two workers, hundreds of reads and writers that get no answer stop nothing else."""
import os
import signal
import subprocess
import time

import nbtest
from nbtest import wait_for

READERS = 500
WRITERS = 50
PYTHON = "/usr/bin/python3"  # one that an ordinary user can run

# Runs as a process of its own: opens many files at once and waits in read() or write().
BLOCKED = r"""
import os, sys, threading
kind, paths = sys.argv[1], sys.argv[2:]
left = threading.Semaphore(0)
def work(path):
    try:
        fd = os.open(path, os.O_RDWR if kind == "write" else os.O_RDONLY)
        left.release()
        if kind == "write":
            os.pwrite(fd, b"held", 0)
        else:
            os.pread(fd, 65536, 0)
    except OSError:
        left.release()
threading.stack_size(65536)
threads = [threading.Thread(target=work, args=(p,)) for p in paths]
for t in threads: t.start()
for t in threads: left.acquire()
print("started", flush=True)
for t in threads: t.join()
print("ended", flush=True)
"""


class Stall(nbtest.Case):
    def setUp(self):
        super().setUp()
        self.box = self.stand_in()
        self.env["NEARBOX_FUSE_WORKERS"] = "2"
        root = self.home / "dir"
        for name in ("held", "heldw", "free"):
            (root / name).mkdir()
        for i in range(READERS):
            with open(root / "held" / f"f{i}", "wb") as f:
                f.truncate(8 * 1024 * 1024)
        for i in range(WRITERS):
            (root / "heldw" / f"w{i}").write_bytes(b"x" * 100)
        for i in range(20):
            (root / "free" / f"small{i}").write_bytes(b"small %d" % i)
        for i in range(3):
            with open(root / "free" / f"large{i}", "wb") as f:
                f.truncate(8 * 1024 * 1024)
        if self.owner:
            self.chown_all(root)
        self.mount(f"{self.box}:{self.dir}")
        # Everything is known before anything is held.
        self.run_cmd("find", self.mnt, "-type", "f")

    def timed(self, seconds, *args):
        begin = time.monotonic()
        done = self.run_cmd(*args, timeout=60)
        took = time.monotonic() - begin
        self.assertEqual(done.returncode, 0, (args, done.stderr))
        self.assertLess(took, seconds, args)
        return done.stdout

    def blocked(self, kind, paths):
        process = self.popen(PYTHON, "-c", BLOCKED, kind, *paths, stdin=subprocess.DEVNULL,
                             stdout=subprocess.PIPE)
        self.assertEqual(process.stdout.readline(), b"started\n")
        return process

    def parked(self):
        daemons = self.nb_json("status")["daemons"]
        return daemons[0]["mounts"][0]["parked_requests"] if daemons and daemons[0]["mounts"] else 0

    def kill_a_reader(self, path):
        reader = self.popen("dd", f"if={path}", "of=/dev/null", "bs=4k", "count=1", stdin=subprocess.DEVNULL,
                            stderr=subprocess.DEVNULL)
        wait_for(lambda: self.state_of(reader.pid) in ("S", "D") and self.in_read(reader.pid), "the reader waits")
        reader.kill()
        begin = time.monotonic()
        reader.wait(20)
        self.assertLess(time.monotonic() - begin, 5.0, "kill -9 of a reader ends it")

    @staticmethod
    def state_of(pid):
        with open(f"/proc/{pid}/stat", encoding="utf-8") as f:
            return f.read().rsplit(")", 1)[1].split()[0]

    @staticmethod
    def in_read(pid):
        try:
            with open(f"/proc/{pid}/wchan", encoding="utf-8") as f:
                chan = f.read()
        except OSError:
            return True
        return chan in ("", "0") or "fuse" in chan or "folio" in chan or "page" in chan

    def test_held_reads_and_writers(self):
        self.set_faults("agent.hold_read *held/*", "agent.hold_op *heldw/*")
        readers = self.blocked("read", [f"{self.mnt}/held/f{i}" for i in range(READERS)])
        writers = self.blocked("write", [f"{self.mnt}/heldw/w{i}" for i in range(WRITERS)])
        wait_for(lambda: self.parked() >= READERS + WRITERS, "all are parked", 30)
        for i in range(5):
            self.timed(3, "stat", f"{self.mnt}/held/f{i}")
            self.assertEqual(self.timed(3, "cat", f"{self.mnt}/free/small{i}"), b"small %d" % i)
        self.assertEqual(len(self.timed(10, "cat", f"{self.mnt}/free/large0")), 8 * 1024 * 1024)
        self.timed(5, "sh", "-c", f"echo new > {self.mnt}/free/written && cat {self.mnt}/free/written")
        self.kill_a_reader(f"{self.mnt}/held/f7")
        begin = time.monotonic()
        self.nb("unmount", self.mnt)
        self.assertLess(time.monotonic() - begin, 20)
        for process in (readers, writers):
            process.wait(20)
            process.stdout.close()
        self.assertEqual(nbtest.mounts_below(str(self.home)), [])

    def test_answered_after_all(self):
        """What was held is answered when the agent answers again: no request is forgotten."""
        self.set_faults("agent.hold_read *held/*", "agent.hold_op *heldw/*")
        readers = self.blocked("read", [f"{self.mnt}/held/f{i}" for i in range(100)])
        writers = self.blocked("write", [f"{self.mnt}/heldw/w{i}" for i in range(WRITERS)])
        wait_for(lambda: self.parked() >= 100 + WRITERS, "all are parked", 30)
        self.set_faults()
        for process in (readers, writers):
            self.assertEqual(process.stdout.readline(), b"ended\n")
            process.wait(20)
            process.stdout.close()
        for i in range(WRITERS):
            self.assertEqual((self.home / "dir" / "heldw" / f"w{i}").read_bytes(), b"held" + b"x" * 96)

    def test_stalled_link(self):
        cached = self.timed(5, "cat", f"{self.mnt}/free/small1")
        (self.home / "stalled").touch()
        for pid in self.processes("nearbox-agent", "connect"):
            os.kill(pid, signal.SIGSTOP)
        readers = self.blocked("read", [f"{self.mnt}/held/f{i}" for i in range(READERS)])
        wait_for(lambda: self.parked() >= READERS, "all are parked", 20)
        for i in range(5):
            self.timed(3, "stat", f"{self.mnt}/held/f{i}")
        self.assertEqual(self.timed(3, "cat", f"{self.mnt}/free/small1"), cached)
        self.kill_a_reader(f"{self.mnt}/free/large1")
        begin = time.monotonic()
        self.nb("unmount", self.mnt)
        self.assertLess(time.monotonic() - begin, 20)
        readers.wait(20)
        readers.stdout.close()
        (self.home / "stalled").unlink()

    def test_deadline_of_a_stalled_link(self):
        """A read that nobody answers ends with an errno, not never."""
        (self.home / "stalled").touch()
        for pid in self.processes("nearbox-agent", "connect"):
            os.kill(pid, signal.SIGSTOP)
        begin = time.monotonic()
        done = self.run_cmd("cat", f"{self.mnt}/free/large2", timeout=120)
        self.assertNotEqual(done.returncode, 0)
        # The kernel asks twice: its read-ahead, then the page itself; each waits its 30 s.
        self.assertLess(time.monotonic() - begin, 75)
        (self.home / "stalled").unlink()
        # And with the link back the same read works.
        self.assertEqual(len(wait_for(lambda: self.run_cmd("cat", f"{self.mnt}/free/large2").stdout, "read again", 60)),
                         8 * 1024 * 1024)


if __name__ == "__main__":
    nbtest.main()
