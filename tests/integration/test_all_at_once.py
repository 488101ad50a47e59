# SPDX-License-Identifier: Apache-2.0
"""Writers there and here, readers here, late acknowledgements, overflows, cuts, new agents: after each barrier the
mount shows what the server's own directory holds.

NEARBOX_COHERENCE_OPS: how many random operations (100,000, as an ordinary user 30,000; 1,000,000 on request).
NEARBOX_TEST_SEED: of the random operations.
"""
import contextlib
import os
import signal

import nbtest
from test_coherence import SEED, Coherence, RandomOps

OPS = int(os.environ.get("NEARBOX_COHERENCE_OPS", "30000" if nbtest.USER else "100000"))
EACH = 1000  # operations of a writer between two barriers


class AllAtOnce(Coherence):
    """Only what is below is run: the class lends its tools."""

    def disturb(self, round_):
        """Before and while a round's operations run."""
        kind = round_ % 6
        points = ["agent.late_done"]
        if kind == 2:
            points.append("agent.watch_overflow")
        elif kind == 4:
            points.append("fs.inval_queue_full")
        self.set_faults(*points)
        needles = {1: ("nearbox-agent", "connect"), 3: ("nearbox-agent", "serve")}.get(kind, ())
        for pid in self.processes(*needles) if needles else []:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if kind == 5:
            agent = self.agent()
            os.kill(agent, signal.SIGSTOP)
            self.addCleanup(self.go_on, agent)
            self.writers[0].after = (EACH // 2, lambda: self.go_on(agent))

    @staticmethod
    def go_on(agent):
        with contextlib.suppress(ProcessLookupError):
            os.kill(agent, signal.SIGCONT)

    def test_everything(self):
        self.mounted()
        self.writers = [Writer(self.dir, SEED + 30), Writer(self.dir, SEED + 31), Writer(self.mnt, SEED + 32)]
        rounds = -(-OPS // (EACH * len(self.writers)))
        self.random_run(rounds * EACH * len(self.writers), self.writers, self.disturb, EACH)
        self.assertGreaterEqual(sum(w.count for w in self.writers), OPS)
        self.assertGreater(self.nb_json("status")["daemons"][0]["link"]["reconnects"], 0)


class Writer(RandomOps):
    after = None  # (operations from now, what to do then)

    def step(self):
        super().step()
        if self.after:
            left, call = self.after
            self.after = (left - 1, call) if left > 1 else None
            if left == 1:
                call()


def load_tests(loader, _tests, _pattern):
    return loader.loadTestsFromName("test_everything", AllAtOnce)


if __name__ == "__main__":
    nbtest.main()
