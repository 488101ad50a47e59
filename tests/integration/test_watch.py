# SPDX-License-Identifier: Apache-2.0
"""How the agent watches: what it must tell, what it must not, and what it does where it cannot watch."""
import mmap
import os
import signal
import threading
import time
import unittest

import nbtest
import test_coherence
from nbtest import wait_for

SIZE = 3_000_000
SCANS = ("agent.no_fanotify", "agent.watch_limit")  # nothing can be watched
DIRECTORIES = ("agent.no_fanotify",)


class Watched(test_coherence.Coherence):
    def daemon(self):
        return self.nb_json("status")["daemons"][0]

    def fetched(self):
        return self.daemon()["cache"]["fetched"]

    @staticmethod
    def read(path):
        with open(path, "rb") as f:
            return f.read()

    @staticmethod
    def overwrite(path, at, data):
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.pwrite(fd, data, at)
        finally:
            os.close(fd)


class OwnWrites(Watched):
    """inotify does not say whose a change was: own writes must not count, everybody else's must."""

    def own_write(self, *points):
        """The bytes that are fetched again after an own write of one byte."""
        self.set_faults(*DIRECTORIES, *points)
        with open(f"{self.dir}/f", "wb") as f:
            f.write(os.urandom(SIZE))
        self.mounted()
        self.assertEqual(self.watch()["kind"], "inotify")
        self.assertEqual(len(self.read(f"{self.mnt}/f")), SIZE)
        before = self.fetched()
        self.assertGreaterEqual(before, SIZE)
        for at in (0, SIZE // 2, SIZE - 1):
            self.overwrite(f"{self.mnt}/f", at, b"x")
            self.check("an own write")
        return self.fetched() - before

    def test_one_byte_brings_nothing_back(self):
        self.assertLessEqual(self.own_write(), 4 * 131072)

    def test_one_byte_off(self):
        self.assertGreaterEqual(self.own_write("agent.no_quiet_writes"), SIZE)

    def beside(self, change):
        """Own writes, and somebody else's in the same moments: what the mount shows in the end is the truth."""
        self.set_faults(*DIRECTORIES)
        with open(f"{self.dir}/f", "wb") as f:
            f.write(b"." * 8192)
        self.mounted()
        self.check("before")
        own = os.open(f"{self.mnt}/f", os.O_RDWR | os.O_CLOEXEC)
        other = os.open(f"{self.dir}/f", os.O_RDWR | os.O_CLOEXEC)  # never closed: no event but those of its writes
        self.addCleanup(os.close, own)
        self.addCleanup(os.close, other)
        for round_ in range(60):
            byte = bytes([33 + round_])
            at_once = threading.Barrier(2)

            def here(byte=byte, at_once=at_once):
                at_once.wait()
                for i in range(20):
                    os.pwrite(own, byte, i)

            worker = threading.Thread(target=here)
            worker.start()
            at_once.wait()
            for i in range(30):
                change(other, byte, 4096 + i)
            worker.join()
            self.nb("flush")
            self.assertEqual(self.read(f"{self.mnt}/f"), self.read(f"{self.dir}/f"), f"round {round_}")

    def test_another_writer_in_the_same_moment(self):
        self.beside(os.pwrite)

    def test_another_writer_that_opens_and_closes(self):
        self.beside(lambda fd, byte, at: self.overwrite(f"{self.dir}/f", at, byte))

    def test_a_map_that_is_closed_in_the_same_moment(self):
        def change(fd, byte, at):
            if at % 10 == 0:
                with mmap.mmap(fd, 8192) as m:
                    m[at] = byte[0]
                self.overwrite(f"{self.dir}/f", 0, b"")  # opened and closed, nothing written

        self.beside(change)


class NotWatched(Watched):
    def test_a_scan_without_a_barrier(self):
        """docs/semantics.md: 10 s after the last one."""
        self.set_faults(*SCANS)
        self.mounted()
        self.assertEqual(self.watch()["kind"], "none")
        self.check("before")
        with open(f"{self.dir}/new", "w", encoding="utf-8") as f:
            f.write("one")
        wait_for(lambda: os.path.exists(f"{self.mnt}/new"), "a file made there", 20)
        os.chmod(f"{self.dir}/new", 0o600)
        wait_for(lambda: os.stat(f"{self.mnt}/new").st_mode & 0o777 == 0o600, "its mode", 20)

    def test_beside_a_root_that_is_watched(self):
        """Nobody counts the changes below the second one: its change times tell them."""
        for name in ("a", "b"):
            os.makedirs(f"{self.dir}/{name}")
            with open(f"{self.dir}/{name}/f", "w", encoding="utf-8") as f:
                f.write("one")
        other = f"{self.mnt}-b"
        os.mkdir(other)
        if self.owner is None and os.getuid() != 0:
            os.chmod(other, 0o755)
        self.set_faults(*DIRECTORIES)
        self.mount(f"{self.target}:{self.dir}/a", self.mnt)
        self.assertEqual(self.watch()["kind"], "inotify")
        self.set_faults(*SCANS, "agent.no_racy_rule")
        wait_for(lambda: self.quiet(f"{self.dir}/b/f"), "a change time of before")
        self.mount(f"{self.target}:{self.dir}/b", other)
        kinds = [d["watch"]["kind"] for d in self.nb_json("status")["daemons"]]
        self.assertIn("none", kinds)
        self.nb("flush")
        self.assertEqual(self.read(f"{other}/f"), b"one")
        st = os.stat(f"{self.dir}/b/f")
        self.overwrite(f"{self.dir}/b/f", 0, b"two")
        os.utime(f"{self.dir}/b/f", ns=(st.st_atime_ns, st.st_mtime_ns))
        self.nb("flush")
        self.assertEqual(self.read(f"{other}/f"), b"two")

    @staticmethod
    def quiet(path, tick=10**7):
        return time.time_ns() - os.stat(path).st_ctime_ns > 3 * tick

    def within_one_tick(self, *points):
        """Changed, read, and changed again while the times stand still: whether the mount always shows the truth.

        Times step by a second here; by 4 ms in tests/unit/agent/versions_test.cpp, RacyTest.
        """
        tick = 10**9
        self.set_faults(*SCANS, "agent.coarse_times 1s", *points)
        paths = [f"f{i}" for i in range(100)]  # each read once: nothing is cached before
        for path in paths:
            with open(f"{self.dir}/{path}", "wb") as f:
                f.write(b"0000")
        self.mounted()
        self.nb("flush")
        truths = 0
        for path in paths:
            if not self.changed_within(path, tick):
                continue
            wait_for(lambda path=path: self.quiet(f"{self.dir}/{path}", tick), "the end of the ticks")
            self.nb("flush")
            if self.read(f"{self.mnt}/{path}") != b"2222":
                return False
            truths += 1
            if truths == 3:
                return True
        return self.fail("too slow for one tick")

    def changed_within(self, path, tick):
        """Whether the first change was read, and the second one left the times alone."""
        while time.time_ns() % tick > tick // 10:
            pass  # a tick at most
        there, here = f"{self.dir}/{path}", f"{self.mnt}/{path}"
        self.overwrite(there, 0, b"1111")
        began = os.stat(there).st_ctime_ns // tick
        seen = [self.read(here) for _ in range(3)]
        self.overwrite(there, 0, b"2222")
        return os.stat(there).st_ctime_ns // tick == began and seen[-1] == b"1111"

    def test_a_second_change_in_one_tick(self):
        self.assertTrue(self.within_one_tick())

    def test_a_second_change_in_one_tick_off(self):
        self.assertFalse(self.within_one_tick("agent.no_racy_rule"))


class StandsStill(Watched):
    """The agent is stopped while more happens than the kernel keeps for it."""

    def overflow(self, *points):
        self.set_faults(*points)
        for i in range(20):
            os.makedirs(f"{self.dir}/d{i}")
            for k in range(100):
                with open(f"{self.dir}/d{i}/f{k}", "wb") as f:
                    f.write(b"before")
        self.mounted()
        self.check("before")
        agent = self.agent()
        lost = self.watch()["lost"]
        os.kill(agent, signal.SIGSTOP)
        try:
            for i in range(20):
                for k in range(100):
                    for step in range(5):  # different events, which are not merged: 20,000 files and more
                        os.chmod(f"{self.dir}/d{i}/f{k}", 0o600 + step % 2 * 0o44)
                        self.overwrite(f"{self.dir}/d{i}/f{k}", 0, b"after%d" % step)
            for i in range(0, 20, 2):
                os.rename(f"{self.dir}/d{i}", f"{self.dir}/moved{i}")
                os.makedirs(f"{self.dir}/d{i}/new/deep")
                with open(f"{self.dir}/d{i}/new/deep/f", "wb") as f:
                    f.write(b"new")
                os.unlink(f"{self.dir}/moved{i}/f7")
        finally:
            os.kill(agent, signal.SIGCONT)
        self.check("after a rest")
        for i in range(0, 20, 2):  # what is there since is watched
            self.overwrite(f"{self.dir}/d{i}/new/deep/f", 0, b"wen")
            os.rename(f"{self.dir}/moved{i}", f"{self.dir}/d{i}/again")
        self.check("watched again")
        return self.watch()["lost"] - lost

    def test_the_queue_overflows(self):
        self.assertGreater(self.overflow(*DIRECTORIES), 0)

    def test_a_queue_without_an_end(self):
        """fanotify keeps everything: nothing is lost."""
        if self.owner is not None or os.getuid() != 0:
            self.skipTest("needs root")
        self.assertEqual(self.overflow(), 0)


class Mounts(Watched):
    """What else is mounted below a mounted directory is named."""

    def others(self):
        return {m["path"]: (m["type"], m["how"]) for m in self.daemon()["watch"]["mounts"]}

    def test_other_file_systems_are_named(self):
        if os.getuid() != 0:
            self.skipTest("needs mount(2)")
        for name in ("plain", "theirs", "proc"):
            os.mkdir(f"{self.dir}/{name}")
        self.set_faults("agent.foreign_mount */theirs")
        self.mount_there("plain", "-t", "tmpfs", "-o", "size=1m", "none")
        self.mounted()
        wait_for(lambda: self.others() == {f"{self.dir}/plain": ("tmpfs", "watched")}, "the first one")
        self.mount_there("theirs", "-t", "tmpfs", "-o", "size=1m", "none")
        self.mount_there("proc", "-t", "proc", "none")
        want = {
            f"{self.dir}/plain": ("tmpfs", "watched"),
            f"{self.dir}/theirs": ("tmpfs", "foreign"),
            f"{self.dir}/proc": ("proc", "empty"),
        }
        wait_for(lambda: self.others() == want, f"all of them: {want}")
        self.assertEqual(os.listdir(f"{self.mnt}/proc"), [])
        text = self.nb("status").stdout.decode()
        self.assertIn(f"{self.dir}/theirs is another file system: tmpfs, foreign", text)
        for i in range(70):
            os.makedirs(f"{self.dir}/many/{i}")
            self.mount_there(f"many/{i}", "--bind", f"{self.dir}/many")
        wait_for(lambda: len(self.others()) == 64 and self.daemon()["watch"]["mounts_left_out"] == 9, "a bounded list")
        self.unmount_there("plain")
        wait_for(lambda: self.daemon()["watch"]["mounts_left_out"] == 8, "one less")

    def test_where_nothing_is_watched(self):
        if os.getuid() != 0:
            self.skipTest("needs mount(2)")
        os.mkdir(f"{self.dir}/plain")
        self.mount_there("plain", "-t", "tmpfs", "-o", "size=1m", "none")
        self.set_faults(*SCANS)
        self.mounted()
        wait_for(lambda: self.others() == {f"{self.dir}/plain": ("tmpfs", "unwatched")}, "it is named")


for case in (Watched, OwnWrites, NotWatched, StandsStill, Mounts):
    for name in [n for n in dir(test_coherence.Coherence) if n.startswith("test_")]:
        setattr(case, name, None)


if __name__ == "__main__":
    nbtest.main()
