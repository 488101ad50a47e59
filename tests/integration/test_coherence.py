# SPDX-License-Identifier: Apache-2.0
"""A mount and the directory it shows: whatever happens there is seen here after a barrier.

NEARBOX_COHERENCE_OPS: random operations of the long test (10,000; 100,000 and more on request).
NEARBOX_TEST_SEED: of the random operations.
"""
import contextlib
import ctypes
import errno
import functools
import mmap
import os
import random
import signal
import stat
import subprocess
import threading
import time
import unittest

import nbtest
from nbtest import wait_for

OPS = int(os.environ.get("NEARBOX_COHERENCE_OPS", "10000"))
SEED = int(os.environ.get("NEARBOX_TEST_SEED", "20240611"))
NAMES = [f"n{i}" for i in range(12)]
grain = 1  # ns: of the times that the agent tells


def facts(path):
    """What one name shows; None when there is none."""
    try:
        st = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except PermissionError:
        return "denied"
    row = [stat.S_IFMT(st.st_mode), stat.S_IMODE(st.st_mode)]
    if stat.S_ISREG(st.st_mode):
        try:
            with open(path, "rb") as f:
                data = f.read()
        except FileNotFoundError:
            return None
        except PermissionError:
            data = "denied"
        row += [st.st_size, st.st_nlink, st.st_mtime_ns // grain, data]
    elif stat.S_ISLNK(st.st_mode):
        row += [os.readlink(path)]
    return row


def picture(root):
    """Names, attributes, contents, links, listings below root."""
    out = {}
    for base, dirs, files in os.walk(root):
        out[os.path.relpath(base, root), "names"] = sorted(dirs + files)
        for name in dirs + files:
            full = os.path.join(base, name)
            out[os.path.relpath(full, root)] = facts(full)
        dirs[:] = [d for d in dirs if not os.path.islink(os.path.join(base, d))]
    return out


def absences(root, dirs):
    return {("absent", d, n): os.path.lexists(os.path.join(root, d, n)) for d in dirs for n in NAMES}


class RandomOps:
    """Random changes on few names, by any process."""

    def __init__(self, root, seed):
        self.root = root
        self.rng = random.Random(seed)
        self.name = f".{seed}"
        self.maps = not os.path.basename(root) == "mnt"  # a mapped file that goes away there is SIGBUS here
        self.links = True  # inotify does not tell all that happens to a file through another name: docs/protocol.md
        self.count = 0

    def any_dir(self):
        at = self.root
        while self.rng.random() < 0.6:
            below = os.path.join(at, self.rng.choice(NAMES[:4]))
            if os.path.islink(below) or not os.path.isdir(below):
                break
            at = below
        return at

    def path(self):
        return os.path.join(self.any_dir(), self.rng.choice(NAMES))

    def step(self):
        self.count += 1
        with contextlib.suppress(OSError, ValueError):  # an empty file has no map
            self.one()

    def data(self):
        return bytes([self.rng.randrange(33, 126)]) * self.rng.choice([0, 1, 5, 100, 4096, 5000, 20000])

    def one(self):
        kind = self.rng.randrange(15)
        path = self.path()
        if kind in (0, 1):
            with open(path, "wb") as f:
                f.write(self.data())
        elif kind == 2:
            with open(path, "ab") as f:
                f.write(self.data()[:50])
        elif kind == 3:
            with open(path, "r+b") as f:
                f.seek(self.rng.randrange(0, 6000))
                f.write(b"middle")
        elif kind == 4:
            with open(path + ".tmp", "wb") as f:
                f.write(self.data())
            os.replace(path + ".tmp", path)
        elif kind == 5:
            os.unlink(path)
        elif kind == 6:
            os.mkdir(os.path.join(self.any_dir(), self.rng.choice(NAMES[:4])))
        elif kind == 7:
            os.rename(path, self.path())
        elif kind == 8 and self.links:
            os.link(path, self.path())
        elif kind == 9:
            os.symlink(self.rng.choice(NAMES), path)
        elif kind == 10:
            os.chmod(path, self.rng.choice([0, 0o500, 0o700, 0o755, 0o755]))
        elif kind == 11:
            os.truncate(path, self.rng.randrange(0, 6000))
        elif kind == 12:
            os.utime(path, ns=(10**18 + self.rng.randrange(10**9),) * 2)
        elif kind == 13 and self.maps:
            private = path + self.name  # nobody else truncates it meanwhile
            os.rename(path, private)
            try:
                with open(private, "r+b") as f, mmap.mmap(f.fileno(), 0) as m:
                    at = self.rng.randrange(len(m))
                    m[at:at + 5] = b"store"[:len(m) - at]
            finally:
                os.rename(private, path)
        elif self.rng.random() < 0.3:
            self.remove_tree(os.path.join(self.any_dir(), self.rng.choice(NAMES[:4])))

    def remove_tree(self, top):
        for base, dirs, files in os.walk(top, topdown=False):
            for name in files:
                os.unlink(os.path.join(base, name))
            for name in dirs:
                full = os.path.join(base, name)
                os.unlink(full) if os.path.islink(full) else os.rmdir(full)
        os.rmdir(top)


class Coherence(nbtest.Case):
    def __init__(self, name="runTest"):
        super().__init__(name)
        method = getattr(self, name)
        setattr(self, name, functools.partial(self.whole_in_user, method))

    def setUp(self):
        super().setUp()
        self.target = self.stand_in()

    def whole_in_user(self, method):
        """Others than the mount's user see nothing of it: the test itself runs as that user."""
        if not self.owner:
            return method()

        def child():
            self.owner = None
            try:
                method()
            except unittest.SkipTest as skip:
                return str(skip)
            return None

        why = self.in_user(child)
        return self.skipTest(why) if why else None

    def mounted(self):
        self.mount(f"{self.target}:{self.dir}", self.mnt, "--symlinks", "raw")

    def watch(self):
        status = self.nb_json("status")
        return status["daemons"][0]["watch"]

    def agent(self):
        return wait_for(lambda: self.processes("nearbox-agent", "serve"), "an agent")[0]

    def check(self, what=""):
        """After a barrier the mount shows what the directory holds."""
        self.nb("flush")
        want, have = picture(self.dir), picture(self.mnt)
        dirs = [d for d in [k[0] for k in want if isinstance(k, tuple)]]
        want.update(absences(self.dir, dirs))
        have.update(absences(self.mnt, dirs))
        if want != have:
            keys = [k for k in set(want) | set(have) if want.get(k) != have.get(k)]
            rows = "\n".join(f"{k}: there {str(want.get(k))[:200]}\n   here {str(have.get(k))[:200]}" for k in keys[:8])
            self.fail(f"{what}: {len(keys)} differences\n{rows}\n{self.watch()}\n{self.logs()}")

    def readers(self, stop):
        """Looks at everything in the mount all the time, so that the kernel knows it."""
        rng = random.Random(SEED)

        def run():
            ops = RandomOps(self.mnt, rng.random())
            while not stop.is_set():
                with contextlib.suppress(OSError):
                    facts(ops.path())
                with contextlib.suppress(OSError):
                    os.listdir(ops.any_dir())

        threads = [threading.Thread(target=run) for _ in range(2)]
        for t in threads:
            t.start()
        return threads

    def random_run(self, total, writers, between=lambda round_: None, each=200):
        for writer in writers:
            writer.links = self.watch()["kind"] != "inotify"
        stop = threading.Event()
        threads = self.readers(stop)
        try:
            rounds = max(1, total // (each * len(writers)))
            for round_ in range(rounds):
                workers = [threading.Thread(target=lambda w=w: [w.step() for _ in range(each)]) for w in writers]
                for t in workers:
                    t.start()
                between(round_)
                for t in workers:
                    t.join()
                self.check(f"round {round_} of {rounds}")
        finally:
            stop.set()
            for t in threads:
                t.join()

    # ---- one thing each

    def test_what_changes_there_is_seen_here(self):
        self.mounted()
        self.assertIn(self.watch()["kind"], ("fanotify", "inotify"))
        d, m = self.dir, self.mnt
        self.assertFalse(os.path.exists(f"{m}/new"))
        self.assertEqual(os.listdir(m), [])
        with open(f"{d}/new", "w", encoding="utf-8") as f:
            f.write("one")
        self.check("a name that was absent")
        with open(f"{d}/new", "w", encoding="utf-8") as f:
            f.write("two")
        self.check("content of the same length")
        os.chmod(f"{d}/new", 0o600)
        self.check("mode")
        os.makedirs(f"{d}/a/b/c")
        os.rename(f"{d}/new", f"{d}/a/b/c/file")
        self.check("a tree, and a file moved into it")
        os.rename(f"{d}/a", f"{d}/z")
        self.check("a directory moved")
        os.link(f"{d}/z/b/c/file", f"{d}/link")
        self.check("a second name")
        with open(f"{d}/link", "a", encoding="utf-8") as f:
            f.write("!")
        self.check("both names of one file")
        os.unlink(f"{d}/link")
        self.check("one of two names gone")

    def test_a_barrier_around_a_command(self):
        self.mounted()
        for i in range(20):
            with open(f"{self.mnt}/in", "w", encoding="utf-8") as f:
                f.write(f"{i}")
            self.nb("exec", self.target, "-C", self.dir, "--", "sh", "-c", f"cat in > out; echo {i} > {i}; rm -f -- {i - 1}")
            with open(f"{self.mnt}/out", encoding="utf-8") as f:
                self.assertEqual(f.read(), str(i))
            self.assertTrue(os.path.exists(f"{self.mnt}/{i}"))
            self.assertFalse(os.path.exists(f"{self.mnt}/{i - 1}"))

    def test_a_growing_log_is_followed(self):
        self.mounted()
        log = f"{self.dir}/log"
        with open(log, "wb") as f:
            f.write(b"start\n")
        self.nb("flush")
        tail = self.popen("tail", "-n", "+1", "-s", "0.02", "---disable-inotify", "-f", f"{self.mnt}/log",
                          stdout=subprocess.PIPE)
        try:
            want = b"start\n"
            with open(log, "ab", buffering=0) as f:
                for i in range(100):
                    line = b"line %d %s\n" % (i, b"x" * (i * 7))
                    f.write(line)
                    want += line
            have = b""
            while len(have) < len(want):
                have += os.read(tail.stdout.fileno(), 65536)
            self.assertEqual(have, want)
        finally:
            tail.kill()
            tail.wait()
            tail.stdout.close()

    def test_stores_through_a_map_count_from_its_close(self):
        self.mounted()
        path = f"{self.dir}/mapped"
        with open(path, "wb") as f:
            f.write(b"a" * 8192)
        self.check("before")
        fd = os.open(path, os.O_RDWR)
        with mmap.mmap(fd, 8192) as m:
            os.close(fd)
            m[0:3] = b"new"
            m.flush()
        self.check("after the last close")

    def test_equal_inode_numbers_on_two_file_systems(self):
        if os.getuid() != 0:
            self.skipTest("needs mount(2)")
        for name in ("one", "two"):
            os.mkdir(f"{self.dir}/{name}")
            subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", f"{self.dir}/{name}"], check=True)
            self.addCleanup(subprocess.run, ["umount", "-l", f"{self.dir}/{name}"], check=False)
            with open(f"{self.dir}/{name}/file", "w", encoding="utf-8") as f:
                f.write(name)
        self.assertEqual(os.stat(f"{self.dir}/one/file").st_ino, os.stat(f"{self.dir}/two/file").st_ino)
        self.mounted()
        self.check("at first")
        for i in range(20):
            with open(f"{self.dir}/two/file", "w", encoding="utf-8") as f:
                f.write(f"changed {i}")
            os.utime(f"{self.dir}/one/file")
            self.check(f"round {i}")

    # ---- at random

    def test_random_changes_there(self):
        self.mounted()
        self.random_run(OPS, [RandomOps(self.dir, SEED), RandomOps(self.dir, SEED + 1)])

    def test_random_changes_on_both_sides(self):
        self.mounted()
        self.random_run(OPS // 4, [RandomOps(self.dir, SEED + 2), RandomOps(self.mnt, SEED + 3)], each=100)

    def test_random_changes_while_it_is_loaded(self):
        for i in range(40):
            for k in range(40):
                os.makedirs(f"{self.dir}/t{i}/s{k}", exist_ok=True)
        writer = RandomOps(self.dir, SEED + 4)
        writer.links = os.getuid() == 0
        worker = threading.Thread(target=lambda: [writer.step() for _ in range(3000)])
        worker.start()
        self.mounted()
        worker.join()
        self.check("after a load beside changes")

    def test_random_changes_with_a_new_agent(self):
        self.mounted()

        def kill(round_):
            if round_ % 3 == 1:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self.agent(), signal.SIGKILL)

        self.random_run(OPS // 5, [RandomOps(self.dir, SEED + 5)], kill)

    def test_random_changes_over_a_link_that_breaks(self):
        self.mounted()

        def cut(round_):
            # The relays: the agent lives on, and the daemon comes back to it.
            for pid in self.processes("nearbox-agent", "connect") if round_ % 2 == 1 else []:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

        self.random_run(OPS // 5, [RandomOps(self.dir, SEED + 7)], cut)

    def test_directory_by_directory(self):
        self.set_faults("agent.no_fanotify")
        self.mounted()
        self.assertEqual(self.watch()["kind"], "inotify")
        self.random_run(OPS // 5, [RandomOps(self.dir, SEED + 8)])

    def test_directory_by_directory_with_links(self):
        self.set_faults("agent.no_fanotify")
        self.mounted()
        d = self.dir
        os.makedirs(f"{d}/one")
        os.makedirs(f"{d}/two")
        for i in range(10):
            with open(f"{d}/one/f", "w", encoding="utf-8") as f:
                f.write(f"{i}")
            os.link(f"{d}/one/f", f"{d}/two/f")
            self.check("a second name")
            with open(f"{d}/two/f", "a", encoding="utf-8") as f:
                f.write("more")
            self.check("a write by the second name")
            if i % 2:
                os.unlink(f"{d}/two/f")
            else:
                with open(f"{d}/two/g", "w", encoding="utf-8") as f:
                    f.write("another")
                os.replace(f"{d}/two/g", f"{d}/two/f")
            self.check("one name again")
            with contextlib.suppress(FileNotFoundError):
                os.unlink(f"{d}/two/f")

    def test_directories_that_are_closed_for_a_time(self):
        self.mounted()
        d = self.dir
        os.makedirs(f"{d}/a/b")
        with open(f"{d}/a/b/held", "w", encoding="utf-8") as f:
            f.write("one")
            f.flush()
            self.check("before")
            os.chmod(f"{d}/a", 0)
            self.check("closed")
            f.write("two")
            f.flush()
            self.check("written through a descriptor")
        os.chmod(f"{d}/a", 0o755)
        self.check("open again")
        os.mkdir(f"{d}/c", 0)
        self.check("closed from the first moment")
        os.chmod(f"{d}/c", 0o700)
        os.mkdir(f"{d}/c/d")
        self.check("opened and filled")
        with open(f"{d}/c/d/e", "w", encoding="utf-8") as f:
            f.write("three")
        self.check("watched from then on")

    def test_random_changes_with_coarse_times(self):
        global grain
        self.mounted()
        for text, step in (("4ms", 4 * 10**6), ("1s", 10**9)):
            self.set_faults(f"agent.coarse_times {text}")
            os.mkdir(f"{self.dir}/{text}")  # what was told with finer times is looked at again
            for name in os.listdir(self.dir):
                os.rename(f"{self.dir}/{name}", f"{self.dir}/{text}/{name}") if name != text else None
            grain = step
            try:
                self.random_run(OPS // 10, [RandomOps(f"{self.dir}/{text}", SEED + 10)])
            finally:
                grain = 1

    def test_random_changes_while_the_agent_stands_still(self):
        self.mounted()
        agent = self.agent()

        def stop(round_):
            os.kill(agent, signal.SIGSTOP if round_ % 2 == 0 else signal.SIGCONT)

        self.addCleanup(lambda: stop(1) if os.path.exists(f"/proc/{agent}") else None)
        for round_ in range(6):
            stop(0)
            for writer in (RandomOps(self.dir, SEED + 20 + round_),):
                writer.links = self.watch()["kind"] != "inotify"
                for _ in range(100):
                    writer.step()
            stop(1)
            self.check(f"after a rest, round {round_}")

    def test_the_limit_of_watches(self):
        self.set_faults("agent.no_fanotify", "agent.watch_limit n1")
        self.mounted()
        self.random_run(1000, [RandomOps(self.dir, SEED + 11)])

    def test_without_a_watch_scans_do(self):
        self.set_faults("agent.no_fanotify", "agent.watch_limit")
        self.mounted()
        self.random_run(1000, [RandomOps(self.dir, SEED + 9)])

    # ---- own changes, looked at at once

    def own_changes(self, seconds, noise):
        """Each call's result holds at once, whatever is looked at in the sandbox meanwhile. The calls that did not."""
        self.mounted()
        stop = threading.Event()
        wrong = []

        def expect(holds, what):
            if not holds:
                wrong.append(what)

        def others():
            os.makedirs(f"{self.dir}/noise", exist_ok=True)
            i = 0
            while not stop.is_set():
                i += 1
                path = f"{self.dir}/noise/n{i % 500}"
                with open(path, "w", encoding="utf-8") as f:
                    f.write("x")
                if i % 7 == 0:
                    os.rename(path, f"{path}r")

        def one_round(i):
            base = f"{self.mnt}/own{i}"
            os.mkdir(base)
            for name in "abc":
                with open(f"{base}/{name}", "wb") as f:
                    for j in range(3):
                        f.write(b"y" * 5000)
                        f.flush()
                        expect(os.fstat(f.fileno()).st_size == 5000 * (j + 1), f"size of {name}")
                expect(os.path.exists(f"{base}/{name}"), f"{name} made")
            expect(sorted(os.listdir(base)) == list("abc"), "listing")
            for _ in range(5):
                with open(f"{base}/lock", "xb") as f:
                    f.write(b"l")
                os.rename(f"{base}/lock", f"{base}/a")
                expect(not os.path.exists(f"{base}/lock"), "renamed away")
                expect(os.path.exists(f"{base}/a"), "renamed to")
            for name in os.listdir(base):
                os.unlink(f"{base}/{name}")
                expect(not os.path.exists(f"{base}/{name}"), "removed")
            os.rmdir(base)
            expect(not os.path.exists(base), "directory removed")

        threads = [threading.Thread(target=others)] if noise else []
        for t in threads:
            t.start()
        try:
            until = time.monotonic() + seconds
            i = 0
            while time.monotonic() < until:
                i += 1
                try:
                    one_round(i)
                except OSError as e:
                    wrong.append(f"round {i}: {e}")
        finally:
            stop.set()
            for t in threads:
                t.join()
        self.check("in the end")
        return wrong

    def test_own_changes_hold_at_once(self):
        self.assertEqual(self.own_changes(6, noise=True), [])

    def test_own_changes_hold_at_once_directory_by_directory(self):
        self.set_faults("agent.no_fanotify")
        self.assertEqual(self.own_changes(6, noise=False), [])

    # ---- mounts in the sandbox

    def mount_there(self, name, *options):
        at = f"{self.dir}/{name}"
        subprocess.run(["mount", *options, at], check=True)
        self.addCleanup(subprocess.run, ["umount", "-l", at], check=False, capture_output=True)

    def unmount_there(self, name):
        subprocess.run(["umount", f"{self.dir}/{name}"], check=True)

    def test_mounts_below_come_and_go(self):
        if os.getuid() != 0:
            self.skipTest("needs mount(2)")
        for name in ("t", "b", "from/x"):
            os.makedirs(f"{self.dir}/{name}")
        outside = f"{self.dir}-outside"
        os.makedirs(f"{outside}/deep")
        self.mounted()
        self.check("before")
        for i in range(3):
            self.mount_there("t", "-t", "tmpfs", "-o", "size=1m", "none")
            with open(f"{self.dir}/t/f{i}", "w", encoding="utf-8") as f:
                f.write("on it")
            self.check("a file system")
        for i in (2, 1, 0):
            self.assertEqual(os.listdir(f"{self.dir}/t"), [f"f{i}"])
            self.unmount_there("t")  # as a person does: nobody keeps it busy
            self.check("one less")
        self.mount_there("b", "--bind", outside)
        self.check("a directory of the same file system")
        for i in range(5):
            with open(f"{outside}/deep/f", "w", encoding="utf-8") as f:
                f.write(f"{i}")
            self.check("changed by its other place")
        self.unmount_there("b")
        self.check("in the end")

    def test_a_file_system_that_does_not_answer(self):
        if os.getuid() != 0:
            self.skipTest("needs mount(2)")
        os.makedirs(f"{self.dir}/hung")
        self.mounted()
        self.check("before")
        device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        try:
            libc = ctypes.CDLL(None, use_errno=True)
            options = f"fd={device},rootmode=40000,user_id=0,group_id=0".encode()
            if libc.mount(b"hung", f"{self.dir}/hung".encode(), b"fuse.hung", 0, options) != 0:
                self.skipTest("may not mount")
            with open(f"{self.dir}/new", "w", encoding="utf-8") as f:
                f.write("seen")
            wait_for(lambda: os.path.exists(f"{self.mnt}/new"), "a file made elsewhere")
            with open(f"{self.dir}/new", "w", encoding="utf-8") as f:
                f.write("seen at the barrier")
            self.nb("flush")
            with open(f"{self.mnt}/new", encoding="utf-8") as f:
                self.assertEqual(f.read(), "seen at the barrier")
        finally:
            os.close(device)
            subprocess.run(["umount", "-l", f"{self.dir}/hung"], check=False)
        self.check("afterwards")


class SwitchedOff(Coherence):
    """With one mechanism off, what a check here finds is what it must miss; with all on, it finds the truth."""

    def both_ways(self, points, prepare, ask, change):
        self.mounted()
        for on in (True, False):
            sub = "off" if on else "on"
            os.mkdir(f"{self.dir}/{sub}")
            prepare(f"{self.dir}/{sub}")
            self.nb("flush")
            before = ask(f"{self.mnt}/{sub}")
            self.set_faults(*(points if on else []))
            change(f"{self.dir}/{sub}")
            self.nb("flush")
            after, truth = ask(f"{self.mnt}/{sub}"), ask(f"{self.dir}/{sub}")
            self.set_faults()
            self.assertNotEqual(before, truth)
            self.assertEqual(after, before if on else truth, f"with {points if on else 'nothing'} switched off")

    @staticmethod
    def put(path, data=b"one"):
        fd = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
        os.pwrite(fd, data, 0)
        os.close(fd)

    def test_entries(self):
        self.both_ways(["fs.no_inval entry"], lambda d: self.put(d + "/f"), lambda d: os.path.exists(d + "/f"),
                       lambda d: os.unlink(d + "/f"))

    def test_negative_entries(self):
        self.both_ways(["fs.no_inval negative"], lambda d: None, lambda d: os.path.exists(d + "/f"),
                       lambda d: self.put(d + "/f"))

    def test_attributes(self):
        self.both_ways(["fs.no_inval attr"], lambda d: self.put(d + "/f"), lambda d: os.stat(d + "/f").st_mode,
                       lambda d: os.chmod(d + "/f", 0o711))

    def test_data(self):
        self.both_ways(["fs.no_inval data"], lambda d: self.put(d + "/f"), lambda d: facts(d + "/f")[-1],
                       lambda d: self.put(d + "/f", b"two"))

    def test_listings(self):
        def change(d):
            st = os.stat(d)
            self.put(d + "/g")
            os.utime(d, ns=(st.st_atime_ns, st.st_mtime_ns))  # else the kernel looks because of that

        self.both_ways(["fs.no_inval listing"], lambda d: self.put(d + "/f"),
                       lambda d: (os.listdir(d), sorted(os.listdir(d)))[1], change)

    def test_scans_after_an_overflow(self):
        self.both_ways(["sync.no_rescan", "agent.watch_overflow"], lambda d: self.put(d + "/f"),
                       lambda d: facts(d + "/f")[-1], lambda d: self.put(d + "/f", b"two"))

    def test_what_the_watcher_tells(self):
        self.both_ways(["agent.drop_changes"], lambda d: self.put(d + "/f"), lambda d: facts(d + "/f")[-1],
                       lambda d: self.put(d + "/f", b"two"))

    def restored(self, *points):
        """The daemon meets a copy of its agent that was made before the last 1,000 events, in another state."""
        self.mounted()
        self.put(f"{self.dir}/f")
        self.check("before")
        self.set_faults("agent.frozen_nonce")  # the copy: it shows what was confirmed until now
        before = self.watch()["seq"]
        for i in range(1000):  # of many names: those of one that changes all the time are sampled
            name = f"counted{i % 250}"
            self.put(f"{self.dir}/{name}", b"x" * (i // 250 + 1))
            limit = time.monotonic() + 20
            while not os.path.exists(f"{self.mnt}/{name}") or os.stat(f"{self.mnt}/{name}").st_size != i // 250 + 1:
                self.assertLess(time.monotonic(), limit)
        self.check("the agent that goes on")
        self.assertGreaterEqual(self.watch()["seq"], before + 1000)
        self.set_faults("agent.frozen_nonce", "agent.drop_changes", *points)  # what the copy did, nobody told
        for i in range(1000):
            self.put(f"{self.dir}/{i % 10}", b"other%d" % i)
        self.put(f"{self.dir}/f", b"two")
        self.nb("flush")
        self.assertEqual(facts(f"{self.mnt}/f")[-1], b"one")
        for pid in self.processes("nearbox-agent", "connect"):
            os.kill(pid, signal.SIGKILL)
        wait_for(lambda: self.nb_json("status")["daemons"][0]["link"]["reconnects"] > 0, "the copy is reached")
        wait_for(lambda: self.nb_json("status")["daemons"][0]["link"]["up"], "the link is up")

    def test_a_copy_of_the_agent_is_found_out(self):
        self.restored()
        self.check("everything was looked at again")

    def test_a_copy_of_the_agent_without_the_nonce(self):
        self.restored("link.no_nonce_check")
        self.nb("flush")
        self.assertEqual(facts(f"{self.mnt}/f")[-1], b"one")

    def test_an_overflow_is_survived(self):
        self.mounted()
        self.set_faults("agent.watch_overflow")
        self.random_run(1000, [RandomOps(self.dir, SEED + 6)])
        self.set_faults()
        self.assertGreater(self.watch()["lost"], 0)


class ReusedNumbers(Coherence):
    """A file that is open here is removed there, and a new one has its inode number."""

    def reuse(self, name):
        """The open descriptor of the old file, and the path below the root of the new one."""
        with open(f"{self.mnt}/f", "wb") as f:
            f.write(b"old file")
        self.nb("flush")
        fd = os.open(f"{self.mnt}/f", os.O_RDWR)
        self.addCleanup(os.close, fd)
        number = os.stat(f"{self.dir}/f").st_ino
        os.unlink(f"{self.dir}/f")
        for i in range(200):
            path = f"{name}{i}" if i else name
            with open(f"{self.dir}/{path}", "wb") as f:
                f.write(b"new file")
            if os.stat(f"{self.dir}/{path}").st_ino == number:
                if path != name:
                    os.rename(f"{self.dir}/{path}", f"{self.dir}/{name}")
                return fd
        return self.skipTest("inode numbers are not used again here")

    def old_is_apart(self, fd, name):
        """Whether the old descriptor reaches nothing of the new file."""
        try:
            apart = os.pread(fd, 100, 0) == b"old file"  # from a cache
        except OSError as e:
            self.assertEqual(e.errno, errno.ESTALE)
            apart = True
        try:
            os.pwrite(fd, b"OVER", 0)
            os.fsync(fd)
            apart = False
        except OSError as e:
            self.assertEqual(e.errno, errno.ESTALE)
        with open(f"{self.dir}/{name}", "rb") as f:
            return apart and f.read() == b"new file"

    def told(self, name):
        self.mounted()
        fd = self.reuse(name)
        self.nb("flush")
        return self.old_is_apart(fd, name)

    def untold(self):
        """The mirror still has the old file under the name of the new one: the agent alone can know."""
        self.mounted()
        os.mkdir(f"{self.dir}/told")  # the daemon's word that the watch is there
        self.nb("flush")
        self.add_faults("agent.drop_changes")
        fd = self.reuse("f")
        return self.old_is_apart(fd, "f")

    def add_faults(self, *points):
        self.points = (*getattr(self, "points", ()), *points)
        self.set_faults(*self.points)

    def test_under_another_name(self):
        self.assertTrue(self.told("g"))
        self.check("the new file")

    def test_under_the_same_name(self):
        self.assertTrue(self.told("f"))
        self.check("the new file")

    def test_before_it_is_told(self):
        self.assertTrue(self.untold())

    def test_by_scans(self):
        self.set_faults("agent.no_fanotify", "agent.watch_limit")
        self.assertTrue(self.told("g"))
        self.check("the new file")

    def test_under_another_name_off(self):
        self.add_faults("agent.no_birth")
        self.assertFalse(self.told("g"))

    def test_before_it_is_told_off(self):
        self.add_faults("agent.no_birth")
        self.assertFalse(self.untold())


for name in [n for n in dir(Coherence) if n.startswith("test_")]:
    setattr(SwitchedOff, name, None)
    setattr(ReusedNumbers, name, None)


if __name__ == "__main__":
    nbtest.main()
