# SPDX-License-Identifier: Apache-2.0
"""The agent leaves the cgroup that throttles a build and lowers its OOM score: with the kernel's own trees.

Needs root. The cgroup made for the test goes with it; mounts are in a namespace of their own.
"""
import contextlib
import os
import pathlib
import shutil
import subprocess
import tempfile
import unittest

import nbtest

ROOT = pathlib.Path("/sys/fs/cgroup")
UNIFIED = "mount -t cgroup2 none /sys/fs/cgroup && "


def in_private_mounts(command):
    return ["unshare", "-m", "--propagation", "private", "sh", "-c", command]


def groups_of(pid):
    """Of a process: the cgroup in each hierarchy, by its controllers ("" is version 2)."""
    lines = pathlib.Path(f"/proc/{pid}/cgroup").read_text(encoding="utf-8").splitlines()
    return {line.split(":", 2)[1]: line.split(":", 2)[2] for line in lines}


@unittest.skipIf(os.geteuid() != 0 or nbtest.USER, "only root leaves a cgroup")
class Surroundings(unittest.TestCase):
    def setUp(self):
        self.home = tempfile.mkdtemp(prefix="nearbox-around-")
        self.addCleanup(shutil.rmtree, self.home, ignore_errors=True)
        self.name = f"nearbox-test-{os.getpid()}"

    def make_group(self, command):
        done = subprocess.run(in_private_mounts(command), capture_output=True, text=True, timeout=20, check=False)
        if done.returncode != 0:
            self.skipTest(f"no cgroup can be made here: {done.stderr.strip()}")

    def start_agent(self, before):
        """Starts the agent after shell commands; the shell becomes the agent."""
        log = open(os.path.join(self.home, "log"), "wb")
        self.addCleanup(log.close)
        agent = subprocess.Popen(
            in_private_mounts(f"{before} && exec {nbtest.AGENT} serve --listen unix --state-dir {self.home}/state --linger 60"),
            stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self.addCleanup(agent.wait, timeout=20)
        self.addCleanup(agent.terminate)
        text = pathlib.Path(self.home, "log")
        nbtest.wait_for(lambda: b"event=listening" in text.read_bytes() or agent.poll() is not None, "the agent listens")
        self.assertIsNone(agent.poll(), text.read_text(encoding="utf-8"))
        return agent.pid

    def test_leaves_a_group_of_version_2(self):
        group = f"/sys/fs/cgroup/{self.name}"
        self.make_group(UNIFIED + f"mkdir {group}")
        self.addCleanup(subprocess.run, in_private_mounts(UNIFIED + f"rmdir {group}"), timeout=20, check=True)
        pid = self.start_agent(UNIFIED + f"echo $$ > {group}/cgroup.procs && grep -q {self.name} /proc/self/cgroup")
        self.assertIn(groups_of(pid)[""], ("/", "/nearbox"))

    def test_leaves_the_groups_of_version_1(self):
        there = [c for c in ("cpu", "cpu,cpuacct", "memory", "pids", "freezer") if (ROOT / c / "cgroup.procs").exists()]
        if not there:
            self.skipTest("no hierarchy of version 1 is mounted")
        enter = []
        for controller in there:
            group = ROOT / controller / self.name
            try:
                group.mkdir()
            except OSError as error:
                self.skipTest(f"no cgroup can be made here: {error}")
            self.addCleanup(self.remove_group, group)
            enter.append(f"echo $$ > {group}/cgroup.procs")
        pid = self.start_agent(" && ".join(enter) + f" && grep -q {self.name} /proc/self/cgroup")
        for controllers, path in groups_of(pid).items():
            self.assertNotIn(self.name, path, controllers)

    @staticmethod
    def remove_group(group):
        def gone():
            with contextlib.suppress(OSError):
                group.rmdir()
            return not group.exists()
        nbtest.wait_for(gone, f"{group} is empty")

    def test_lowers_its_oom_score(self):
        # What a build may have been given; the shell's own number says how far down one may go here.
        pid = self.start_agent("echo 500 > /proc/self/oom_score_adj")
        score = int(pathlib.Path(f"/proc/{pid}/oom_score_adj").read_text(encoding="utf-8"))
        self.assertIn(score, (-900, 0))


if __name__ == "__main__":
    unittest.main(verbosity=2)
