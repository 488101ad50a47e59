# SPDX-License-Identifier: Apache-2.0
"""A tree of more names than the daemon may hold: [mirror] max_entries."""
import contextlib
import os
import signal
import stat
import threading

import nbtest
from nbtest import wait_for
from test_coherence import OPS, SEED, Coherence, RandomOps


class Budget(Coherence):
    def limit(self, entries):
        where = self.home / ".config" / "nearbox"
        where.mkdir(parents=True, exist_ok=True)
        (where / "config.toml").write_text(f"[mirror]\nmax_entries = {entries}\n")

    def tree(self):
        return self.nb_json("status")["daemons"][0]["tree"]

    def fill(self, dirs, files):
        for i in range(dirs):
            os.makedirs(f"{self.dir}/d{i % 10}/e{i}")
            for k in range(files):
                with open(f"{self.dir}/d{i % 10}/e{i}/f{k}", "wb") as f:
                    f.write(b"%d" % k)

    def put(self, path, data=b"x"):
        with open(path, "wb") as f:
            f.write(data)

    # ---- a walk over everything

    def walk(self, root):
        found = {}
        for base, dirs, files in os.walk(root):
            for name in dirs + files:
                st = os.lstat(os.path.join(base, name))
                size = st.st_size if stat.S_ISREG(st.st_mode) else 0
                found[os.path.relpath(os.path.join(base, name), root)] = (st.st_mode, size, st.st_mtime_ns, st.st_ino)
        return found

    def test_find_over_everything(self):
        """Ten times the budget: the walk is right, and afterwards and all the while the bound is kept but for 256
        names of directories just listed and what the kernel has not given back yet, which it does in a moment."""
        entries = 5000
        self.limit(entries)
        self.fill(500, 99)
        self.mounted()
        tree = wait_for(lambda: (lambda t: t if t["mode"] != "whole" else None)(self.tree()), "by directory")
        self.assertEqual((tree["mode"], tree["max_entries"]), ("expanded directories", entries))
        want = self.walk(self.dir)
        self.assertGreaterEqual(len(want), 50000)
        most = []
        stop = threading.Event()

        def look():
            while not stop.is_set():
                most.append(self.tree()["entries"])

        looker = threading.Thread(target=look)
        looker.start()
        try:
            for _ in range(2):
                self.assertEqual(self.walk(self.mnt), want)
        finally:
            stop.set()
            looker.join()
        self.assertLess(max(most), 4 * entries)
        wait_for(lambda: self.tree()["entries"] <= entries + 256, f"the bound is kept, not {self.tree()}")
        self.assertGreater(self.tree()["collapsed"], 400)
        self.assertIn(b"tree: expanded directories", self.nb("status").stdout)

    def test_what_the_kernel_was_not_asked_for_once(self):
        """It is asked for later, so that the bound holds in the end."""
        entries = 1000
        self.limit(entries)
        self.fill(60, 99)
        self.mounted()
        self.set_faults("fs.no_let_go")
        self.walk(self.mnt)
        self.assertGreater(self.tree()["entries"], 2 * entries)
        self.set_faults()
        wait_for(lambda: self.tree()["entries"] <= entries + 256, f"the bound is kept, not {self.tree()}")

    def test_a_tree_that_fits_is_whole(self):
        self.limit(5000)
        self.fill(20, 20)
        self.mounted()
        wait_for(lambda: not self.nb_json("status")["daemons"][0]["mounts"][0]["loading"], "loaded")
        self.assertEqual(self.tree()["mode"], "whole")
        self.assertGreaterEqual(self.tree()["entries"], 420)

    # ---- what the kernel was shown of a directory that collapsed since

    def collapsed_beside(self):
        """`d0/e0` is open here, its listing and an absence are in the kernel, and the daemon has let go of its names."""
        self.limit(60)
        self.fill(30, 9)
        self.mounted()
        held = f"{self.mnt}/d0/e0"
        fd = os.open(held, os.O_RDONLY | os.O_DIRECTORY)
        self.addCleanup(os.close, fd)
        for _ in range(2):
            self.assertEqual(len(os.listdir(held)), 9)
            self.nb("flush")  # what is told of the listing that came is told: the kernel keeps the next one
        self.assertFalse(os.path.lexists(f"{held}/new"))
        self.collapsed_again()
        return held

    def change_unseen_by_times(self, change):
        """The directory's own times are what they were, so that the kernel has no other reason to look again."""
        real = f"{self.dir}/d0/e0"
        was = os.stat(real)
        change(real)
        os.utime(real, ns=(was.st_atime_ns, was.st_mtime_ns))
        self.nb("flush")

    def test_a_removal_in_a_collapsed_directory(self):
        held = self.collapsed_beside()
        self.change_unseen_by_times(lambda real: os.unlink(f"{real}/f3"))
        self.assertNotIn("f3", os.listdir(held))
        self.assertFalse(os.path.lexists(f"{held}/f3"))

    def test_a_removal_in_a_collapsed_directory_off(self):
        self.set_faults("sync.no_collapse_inval")
        held = self.collapsed_beside()
        self.change_unseen_by_times(lambda real: os.unlink(f"{real}/f3"))
        self.assertIn("f3", os.listdir(held))

    def other_name(self):
        """A file whose other name is in a directory of which the daemon knows nothing, written by that."""
        self.limit(60)
        self.fill(30, 9)
        far = f"{self.dir}/d5/e5/deep/deeper"
        os.makedirs(far)
        os.link(f"{self.dir}/d0/e0/f1", f"{far}/other")
        self.mounted()
        for i in range(1, 30):
            os.listdir(f"{self.mnt}/d{i % 10}/e{i}")
        held = f"{self.mnt}/d0/e0"
        self.assertEqual(len(os.listdir(held)), 9)
        with open(f"{held}/f1", "rb") as f:
            self.assertEqual(f.read(), b"1")
            with open(f"{far}/other", "ab") as o:
                o.write(b" and more")
            self.nb("flush")
            return os.lstat(f"{held}/f1").st_size

    def test_a_write_by_a_name_that_is_not_known(self):
        self.assertEqual(self.other_name(), 10)

    def test_a_write_by_a_name_that_is_not_known_off(self):
        self.set_faults("sync.no_other_names")
        self.assertEqual(self.other_name(), 1)

    def test_a_new_name_in_a_collapsed_directory(self):
        held = self.collapsed_beside()
        self.change_unseen_by_times(lambda real: self.put(f"{real}/new"))
        self.assertTrue(os.path.lexists(f"{held}/new"))
        self.assertIn("new", os.listdir(held))

    def test_a_file_in_a_collapsed_directory(self):
        held = self.collapsed_beside()
        with open(f"{held}/f2", "rb") as f:
            self.assertEqual(f.read(), b"2")
        self.collapsed_again()
        self.put(f"{self.dir}/d0/e0/f2", b"!")
        os.chmod(f"{self.dir}/d0/e0/f2", 0o600)
        self.nb("flush")
        self.assertEqual(stat.S_IMODE(os.lstat(f"{held}/f2").st_mode), 0o600)
        with open(f"{held}/f2", "rb") as f:
            self.assertEqual(f.read(), b"!")

    def collapsed_again(self):
        before = self.tree()["collapsed"]

        def others():
            for i in range(1, 30):
                os.listdir(f"{self.mnt}/d{i % 10}/e{i}")
            return self.tree()["collapsed"] > before + 60

        wait_for(others, "it collapsed")

    # ---- what is in doubt stays so when it collapses before anybody looks

    def doubted_beside(self, lose):
        """Files of `d0/e0` are open while changes of them are lost; then its place is needed."""
        self.limit(60)
        self.fill(30, 9)
        self.mounted()
        self.nb("flush")
        held, real = f"{self.mnt}/d0/e0", f"{self.dir}/d0/e0"
        os.listdir(held)
        open_ = [os.open(f"{held}/f{k}", os.O_RDONLY) for k in (2, 3, 4)]
        for fd in open_:
            self.addCleanup(os.close, fd)
        self.assertEqual(os.pread(open_[0], 100, 0), b"2")

        def change():
            self.put(f"{real}/f2", b"changed content")
            os.unlink(f"{real}/f3")
            os.chmod(f"{real}/f4", 0o600)

        lose(change)
        self.nb("flush")
        self.collapsed_again()
        self.nb("flush")
        self.assertEqual(os.fstat(open_[0]).st_size, len(b"changed content"))
        self.assertEqual(os.pread(open_[0], 100, 0), b"changed content")
        self.assertFalse(os.path.lexists(f"{held}/f3"))
        self.assertEqual(stat.S_IMODE(os.lstat(f"{held}/f4").st_mode), 0o600)
        self.assertEqual(sorted(os.listdir(held)), sorted(os.listdir(real)))

    def test_a_new_agent_and_a_collapse(self):
        def lose(change):
            agent = self.agent()
            os.kill(agent, signal.SIGSTOP)
            change()
            os.kill(agent, signal.SIGKILL)

        self.doubted_beside(lose)

    def test_an_overflow_and_a_collapse(self):
        def lose(change):
            self.set_faults(*(f"agent.drop_changes f{k}" for k in (2, 3, 4)))
            change()
            self.nb("flush")
            self.set_faults("agent.watch_overflow")
            self.nb("flush")
            self.set_faults()

        self.doubted_beside(lose)

    def test_nobody_watches_and_a_collapse(self):
        self.set_faults("agent.no_fanotify", "agent.watch_limit")
        self.doubted_beside(lambda change: change())

    def test_a_reader_goes_on_where_it_was(self):
        self.limit(200)
        os.mkdir(f"{self.dir}/big")
        for k in range(3000):
            self.put(f"{self.dir}/big/f{k}")
        self.fill(30, 9)
        self.mounted()
        seen = []
        with os.scandir(f"{self.mnt}/big") as reader:
            for n, entry in enumerate(reader):
                seen.append(entry.name)
                if n % 500 == 250:
                    self.collapsed_again()
        self.assertEqual(sorted(seen), sorted(f"f{k}" for k in range(3000)))

    # ---- at random

    def crowded(self):
        """More than the budget from the begin, however the random names fall."""
        self.limit(30)
        for i in range(20):
            os.makedirs(f"{self.dir}/q{i}")
            self.put(f"{self.dir}/q{i}/f")

    def test_random_changes_there_over_the_budget(self):
        self.crowded()
        self.mounted()
        self.random_run(OPS // 2, [RandomOps(self.dir, SEED), RandomOps(self.dir, SEED + 1)])
        self.assertGreater(self.tree()["collapsed"], 0)

    def test_random_changes_on_both_sides_over_the_budget(self):
        self.crowded()
        self.mounted()
        self.random_run(OPS // 4, [RandomOps(self.dir, SEED + 2), RandomOps(self.mnt, SEED + 3)], each=100)

    def test_random_changes_with_lost_events_and_a_new_agent(self):
        self.crowded()
        self.mounted()

        def disturb(round_):
            if round_ % 4 == 1:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self.agent(), signal.SIGKILL)
            self.set_faults(*(["agent.watch_overflow"] if round_ % 4 == 3 else []))

        self.random_run(OPS // 5, [RandomOps(self.dir, SEED + 5)], disturb)

    def test_random_changes_with_an_old_kernel(self):
        self.set_faults("fs.no_prune", "fs.no_epoch")
        self.crowded()
        self.mounted()
        self.random_run(OPS // 5, [RandomOps(self.dir, SEED + 6)])

    def test_random_changes_nobody_watches(self):
        self.set_faults("agent.no_fanotify", "agent.watch_limit")
        self.crowded()
        self.mounted()
        writer = RandomOps(self.dir, SEED + 7)
        self.random_run(OPS // 10, [writer])


for name in [n for n in dir(Coherence) if n.startswith("test_")]:
    setattr(Budget, name, None)
del Coherence


if __name__ == "__main__":
    nbtest.main()
