# SPDX-License-Identifier: Apache-2.0
"""A sandbox that is 50 ms away: barriers beside local writers who never pause."""
import contextlib
import itertools
import os
import threading

import nbtest
from test_coherence import SEED, Coherence, RandomOps, facts

DELAY = 0.025  # each way, s
WRITERS = 4
ROUNDS = 8


class Far(Coherence):
    """Only what is below is run: the class lends its tools."""

    def setUp(self):
        super().setUp()
        script = self.home / "docker"
        delay = os.path.join(os.path.dirname(os.path.abspath(__file__)), "delay.py")
        text = script.read_text()
        script.write_text(text.replace('exec "$@"', f'exec {nbtest.PYTHON} {delay} {DELAY} "$@"'))

    def local_writers(self, stop):
        """Write to names of their own in one directory, all the time."""
        def run(number):
            for i in itertools.count():
                if stop.is_set():
                    return
                path = f"{self.mnt}/busy/local{number}-{i % 20}"
                with contextlib.suppress(FileNotFoundError):
                    with open(path, "w", encoding="utf-8") as f:
                        f.write(f"{i}")
                    os.rename(path, f"{path}r")
                    if i % 3 == 0:
                        os.unlink(f"{path}r")

        threads = [threading.Thread(target=run, args=(n,)) for n in range(WRITERS)]
        for thread in threads:
            thread.start()
        return threads

    def beside_writers(self, *faults):
        self.mounted()
        os.mkdir(f"{self.dir}/busy")
        self.nb("flush")
        stop = threading.Event()
        threads = self.local_writers(stop)
        try:
            self.set_faults(*faults)
            for i in range(ROUNDS):
                facts(f"{self.mnt}/busy/there{i}")  # the kernel knows that it is absent
                with open(f"{self.dir}/busy/there{i}", "w", encoding="utf-8") as f:
                    f.write(f"{i}")
                with open(f"{self.dir}/busy/same", "w", encoding="utf-8") as f:
                    f.write(f"{i}")
                self.nb("flush")
                for name in (f"there{i}", "same"):
                    self.assertEqual(facts(f"{self.mnt}/busy/{name}"), facts(f"{self.dir}/busy/{name}"), name)
                self.assertIn(f"there{i}", os.listdir(f"{self.mnt}/busy"))
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        self.set_faults()
        self.check("afterwards")

    def test_a_barrier_beside_writers(self):
        self.beside_writers()

    def test_a_barrier_beside_writers_after_overflows(self):
        self.beside_writers("agent.watch_overflow")

    def test_random_changes_on_both_sides_far_away(self):
        self.mounted()
        self.random_run(600, [RandomOps(self.dir, SEED + 40), RandomOps(self.mnt, SEED + 41)], each=50)


def load_tests(loader, _tests, _pattern):
    names = [n for n in dir(Far) if n.startswith("test_") and n not in dir(Coherence)]
    return loader.suiteClass(loader.loadTestsFromName(n, Far) for n in names)


if __name__ == "__main__":
    nbtest.main()
