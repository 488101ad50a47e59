# SPDX-License-Identifier: Apache-2.0
"""Daemon, agent and server are killed: the next command recovers, no dead mount stays."""
import os
import random
import signal
import stat
import subprocess

import nbtest
from nbtest import wait_for


class Crash(nbtest.Case):
    def kill(self, *needles):
        pids = self.processes(*needles)
        self.assertTrue(pids, f"no process {needles}")
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass

    def test_daemon_killed(self):
        box = self.stand_in()
        (self.home / "dir" / "f").write_text("here")
        self.mount(f"{box}:{self.dir}")
        self.kill("nearbox", "daemon --target")
        wait_for(lambda: nbtest.mounts_below(str(self.home)) == [], "the watchdog took the dead mount away", 10)
        self.mount(f"{box}:{self.dir}")
        self.assertEqual(self.run_cmd("cat", f"{self.mnt}/f").stdout, b"here")
        self.nb("unmount", self.mnt)

    def test_daemon_and_watchdog_killed(self):
        box = self.stand_in()
        (self.home / "dir" / "f").write_text("here")
        self.mount(f"{box}:{self.dir}")
        self.kill("fuse-watchdog")
        self.kill("nearbox", "daemon --target")
        self.mount(f"{box}:{self.dir}")
        self.assertEqual(self.run_cmd("cat", f"{self.mnt}/f").stdout, b"here")
        self.kill("fuse-watchdog")
        self.kill("nearbox", "daemon --target")
        self.nb("unmount", self.mnt)
        self.assertEqual(nbtest.mounts_below(str(self.home)), [])

    def test_agent_killed(self):
        box = self.stand_in()
        (self.home / "dir" / "f").write_text("here")
        (self.home / "dir" / "g").write_text("there")
        self.mount(f"{box}:{self.dir}")
        self.assertEqual(self.run_cmd("cat", f"{self.mnt}/f").stdout, b"here")
        self.kill("nearbox-agent", "serve")
        self.assertEqual(self.run_cmd("cat", f"{self.mnt}/g").stdout, b"there")
        self.assertEqual(self.run_cmd("sh", "-c", f"echo new > {self.mnt}/n && cat {self.mnt}/n").stdout, b"new\n")
        self.assertEqual(self.nb("exec", box, "--", "echo", "works").stdout, b"works\n")
        self.assertEqual((self.home / "dir" / "n").read_text(), "new\n")

    def test_server_killed(self):
        server = self.serve()
        sandbox = self.create("--timeout", "600")
        self.mount(sandbox)
        self.nb("exec", sandbox, "--", "sh", "-c", "echo x > f")
        server.kill()
        server.wait()
        server.stdout.close()
        done = self.nb("exec", sandbox, "--connect-timeout", "10", "--", "true", code=125, timeout=60)
        self.assertTrue(done.stderr.startswith(b"nearbox: "), done.stderr)
        self.nb("unmount", self.mnt)
        self.assertEqual(nbtest.mounts_below(str(self.home)), [])
        # A killed server leaves no process of its sandboxes behind, and a new one starts.
        wait_for(lambda: not self.processes("sandbox-init"), "the sandbox's processes are gone", 15)
        server = self.serve()
        self.assertEqual(self.nb("exec", self.create(), "--", "echo", "again").stdout, b"again\n")
        self.stop(server)

    def test_random_kills(self):
        seed = int(os.environ.get("NEARBOX_TEST_SEED", "7"))
        rng = random.Random(seed)
        box = self.stand_in()
        for step in range(12):
            target = f"{box}:{self.dir}"
            if not nbtest.mounts_below(self.mnt):
                self.mount(target)
            name = f"file{step}"
            text = f"step {step} of seed {seed}\n"
            done = self.run_cmd("sh", "-c", f"printf %s '{text}' > {self.mnt}/{name}")
            self.assertEqual(done.returncode, 0, (seed, step, done.stderr))
            victim = rng.choice([("nearbox", "daemon --target"), ("nearbox-agent", "serve"),
                                 ("nearbox-agent", "connect")])
            self.kill(*victim)
            self.assertEqual(self.nb("exec", box, "--", "cat", f"{self.dir}/{name}").stdout.decode(), text)
            if victim[1].startswith("daemon"):
                wait_for(lambda: not nbtest.mounts_below(self.mnt), "no dead mount stays", 10)
        self.assertEqual(len(os.listdir(self.dir)), 12)


# What one system call through the mount does to the sandbox: (name, state before, the call, state after). States
# are those of the directory D that the calls work in, as `state()` tells them. `m` is D through the mount.
F = {"f": b"0123456789"}
OPS = [
    ("create", {}, "os.close(os.open(m + '/n', os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o640))", {"n": b""}),
    ("mkdir", {}, "os.mkdir(m + '/n', 0o750)", {"n/": None}),
    ("mkfifo", {}, "os.mkfifo(m + '/n', 0o600)", {"n": "fifo"}),
    ("symlink", {}, "os.symlink('where', m + '/n')", {"n": "-> where"}),
    ("link", F, "os.link(m + '/f', m + '/n')", {"f": b"0123456789", "n": "= f"}),
    ("unlink", F, "os.unlink(m + '/f')", {}),
    ("unlink_one_of_two", {**F, "g": "= f"}, "os.unlink(m + '/f')", {"g": b"0123456789"}),
    ("rmdir", {"d/": None}, "os.rmdir(m + '/d')", {}),
    ("rename", F, "os.rename(m + '/f', m + '/n')", {"n": b"0123456789"}),
    ("rename_over", {**F, "n": b"old"}, "os.rename(m + '/f', m + '/n')", {"n": b"0123456789"}),
    ("rename_across", {**F, "d/": None, "d/f": b"old"}, "os.rename(m + '/f', m + '/d/f')",
     {"d/": None, "d/f": b"0123456789"}),
    ("rename_directory", {"d/": None, "d/f": b"x", "e/": None}, "os.rename(m + '/d', m + '/e/d')",
     {"e/": None, "e/d/": None, "e/d/f": b"x"}),
    ("rename_noreplace", F, "rename2(m + '/f', m + '/n', 1)", {"n": b"0123456789"}),
    ("rename_exchange", {**F, "n": b"other"}, "rename2(m + '/f', m + '/n', 2)", {"f": b"other", "n": b"0123456789"}),
    ("write", F, "os.pwrite(os.open(m + '/f', os.O_WRONLY), b'abc', 2)", {"f": b"01abc56789"}),
    ("write_past_the_end", F, "os.pwrite(os.open(m + '/f', os.O_WRONLY), b'abc', 9)", {"f": b"012345678abc"}),
    ("append", F, "os.write(os.open(m + '/f', os.O_WRONLY | os.O_APPEND), b'abc')", {"f": b"0123456789abc"}),
    ("append_of_the_same", {"f": b"abc"}, "os.write(os.open(m + '/f', os.O_WRONLY | os.O_APPEND), b'abc')",
     {"f": b"abcabc"}),
    ("truncate", F, "os.truncate(m + '/f', 4)", {"f": b"0123"}),
    ("grow", F, "os.truncate(m + '/f', 12)", {"f": b"0123456789\0\0"}),
    ("open_truncate", F, "os.close(os.open(m + '/f', os.O_WRONLY | os.O_TRUNC))", {"f": b""}),
    ("fallocate", F, "os.posix_fallocate(os.open(m + '/f', os.O_WRONLY), 0, 12)", {"f": b"0123456789\0\0"}),
    ("punch_hole", F, "fallocate(os.open(m + '/f', os.O_WRONLY), 3, 2, 3)", {"f": b"01\0\0\x0056789"}),
    ("copy", {**F, "g": b"abc"}, "os.copy_file_range(os.open(m + '/f', os.O_RDONLY), "
     "os.open(m + '/g', os.O_WRONLY), 4, 0, 3)", {"f": b"0123456789", "g": b"abc0123"}),
    ("chmod", F, "os.chmod(m + '/f', 0o604)", {"f": b"0123456789"}),
    ("utimens", F, "os.utime(m + '/f', ns=(5, 1_500_000_000_123_456_789))", {"f": b"0123456789"}),
    ("fsync", F, "os.fsync(os.open(m + '/f', os.O_RDONLY))", {"f": b"0123456789"}),
]
CALLER = """
import ctypes, os, sys
m = sys.argv[1]
libc = ctypes.CDLL(None, use_errno=True)
def check(result):
    if result != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
def rename2(a, b, flags):
    check(libc.renameat2(-100, a.encode(), -100, b.encode(), flags))
def fallocate(fd, mode, offset, length):
    check(libc.fallocate(fd, mode, ctypes.c_long(offset), ctypes.c_long(length)))
os.umask(0)
"""


def build(top, tree):
    """Makes what `tree` describes below the directory `top`."""
    for name, what in tree.items():
        path = os.path.join(top, name)
        if what is None:
            os.mkdir(path)
        elif isinstance(what, bytes):
            with open(path, "wb") as f:
                f.write(what)
        else:
            os.link(os.path.join(top, what[2:]), path)


def state(top):
    """What lies below `top`: directories None, files their bytes, others a word; further names of a file `= NAME`."""
    found, first = {}, {}
    for where, dirs, files in os.walk(top):
        for name in dirs:
            found[os.path.relpath(os.path.join(where, name), top) + "/"] = None
        for name in sorted(files):
            path = os.path.join(where, name)
            rel, st = os.path.relpath(path, top), os.lstat(path)
            if stat.S_ISLNK(st.st_mode):
                found[rel] = "-> " + os.readlink(path)
            elif stat.S_ISFIFO(st.st_mode):
                found[rel] = "fifo"
            elif st.st_ino in first:
                found[rel] = "= " + first[st.st_ino]
            else:
                first[st.st_ino] = rel
                with open(path, "rb") as f:
                    found[rel] = f.read()
    return found


class AfterApply(nbtest.Case):
    """The agent dies when it applied an operation and before it said so: neither lost nor applied twice."""

    def setUp(self):
        super().setUp()
        self.box = self.stand_in()

    def agents(self):
        return set(self.processes("nearbox-agent", "serve"))

    def crash(self, place, call):
        """Runs `call` in D = dir/place; the agent dies once its operation is applied; returns the exit code."""
        before = self.agents()
        self.assertTrue(before)
        self.set_faults(f"agent.crash_after_apply {self.dir[1:]}/{place}/*")
        caller = self.popen(nbtest.PYTHON, "-c", CALLER + call, f"{self.mnt}/{place}", stdout=subprocess.DEVNULL,
                            stderr=subprocess.PIPE)
        try:
            wait_for(lambda: not before & self.agents(), f"{place}: the agent died")
        finally:
            self.set_faults()
        err = caller.communicate(timeout=60)[1]
        self.assertEqual(caller.returncode, 0, (place, err, self.logs()))

    def look(self, place, after):
        self.assertEqual(state(os.path.join(self.dir, place)), after, place)
        self.assertEqual(self.in_user(lambda: state(os.path.join(self.mnt, place))), after, place)
        names = "cd '{}' && find . -printf '%p %y %s %m %n %T@ %i %l\\n' | LC_ALL=C sort"
        inside, shown = (self.run_cmd("sh", "-c", names.format(os.path.join(top, place))).stdout
                         for top in (self.dir, self.mnt))
        self.assertEqual(shown, inside, place)

    def test_every_operation(self):
        for name, before, _, _ in OPS:
            top = os.path.join(self.dir, name)
            os.mkdir(top)
            build(top, before)
        if self.owner:
            self.chown_all(self.dir)
        self.mount(f"{self.box}:{self.dir}", self.mnt, "--symlinks", "raw")
        for name, _, call, after in OPS:
            with self.subTest(name):
                self.crash(name, call)
                self.look(name, after)
        mode = os.stat(os.path.join(self.dir, "create", "n"))
        self.assertEqual(stat.S_IMODE(mode.st_mode), 0o640)
        self.assertEqual(stat.S_IMODE(os.stat(os.path.join(self.dir, "mkdir", "n")).st_mode), 0o750)
        self.assertEqual(stat.S_IMODE(os.stat(os.path.join(self.dir, "chmod", "f")).st_mode), 0o604)
        self.assertEqual(os.stat(os.path.join(self.dir, "utimens", "f")).st_mtime_ns, 1_500_000_000_123_456_789)

    def test_many_at_once(self):
        """Several operations under way when the agent dies, some applied, some not."""
        os.mkdir(os.path.join(self.dir, "many"))
        if self.owner:
            self.chown_all(self.dir)
        self.mount(f"{self.box}:{self.dir}")
        self.crash("many", """
import threading
def one(i):
    name = m + '/%d' % i
    for step in range(5):
        fd = os.open(name, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        os.write(fd, b'%d\\n' % step)
        os.close(fd)
    os.rename(name, name + '.done')
threads = [threading.Thread(target=one, args=(i,)) for i in range(20)]
[t.start() for t in threads]
[t.join() for t in threads]
""")
        self.look("many", {f"{i}.done": b"0\n1\n2\n3\n4\n" for i in range(20)})


if __name__ == "__main__":
    nbtest.main()
