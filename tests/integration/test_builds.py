# SPDX-License-Identifier: Apache-2.0
"""Two clients of different builds on one sandbox do not disturb each other."""
import os
import pathlib
import shutil
import signal
import subprocess

import nbtest
from nbtest import AGENT, NEARBOX, wait_for

PRINTER = "i=0; while [ $i -lt 40000 ]; do echo line $i; i=$((i+1)); done; exit 7"
EXPECTED = "".join(f"line {i}\n" for i in range(40000)).encode()


class Builds(nbtest.Case):
    def setUp(self):
        super().setUp()
        self.box = self.stand_in()
        other = self.home / "other-agent"
        shutil.copy(AGENT, other)
        with open(other, "ab") as f:
            f.write(b"\n")  # another content hash; the program is the same
        for name in ("state2", "run2", "mnt2"):
            (self.home / name).mkdir(mode=0o700)
        if self.owner:
            self.chown_all(self.home)
        self.mnt2 = str(self.home / "mnt2")
        self.env2 = {**self.env, "NEARBOX_AGENT": str(other), "XDG_STATE_HOME": str(self.home / "state2"),
                     "XDG_RUNTIME_DIR": str(self.home / "run2")}

    def agents(self):
        """Pids of the agents that serve, by the program they run."""
        return {os.readlink(f"/proc/{pid}/exe"): pid for pid in self.processes("nearbox-agent", "serve")}

    def printer(self, env):
        return self.popen(NEARBOX, "exec", self.box, "--", "sh", "-c", PRINTER, env=env, stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0)

    def printed(self, process, first=b""):
        rest, err = process.communicate(timeout=120)
        self.assertEqual(process.returncode, 7, err)
        self.assertTrue(first + rest == EXPECTED, f"{len(first + rest)} bytes, not the {len(EXPECTED)} expected")

    def both_mounted(self):
        target = f"{self.box}:{self.dir}"
        self.nb("mount", target, self.mnt)
        self.nb("mount", target, self.mnt2, env=self.env2)
        agents = self.agents()
        self.assertEqual(len(agents), 2, agents)
        self.assertEqual(len(set(agents.values())), 2)
        return agents

    def test_side_by_side(self):
        agents = self.both_mounted()
        commands = [self.printer(env) for env in (self.env, self.env2, self.env, self.env2)]
        for i in range(20):
            for mnt in (self.mnt, self.mnt2):
                name = f"{pathlib.Path(mnt).name}-{i}"
                done = self.run_cmd("sh", "-c", f"echo {name} > {mnt}/{name} && cat {mnt}/{name}")
                self.assertEqual((done.returncode, done.stdout.decode()), (0, name + "\n"), done.stderr)
        for process in commands:
            self.printed(process)
        self.assertEqual(len(os.listdir(self.dir)), 40)
        self.assertEqual(self.agents(), agents)
        for env in (self.env, self.env2):
            self.assertEqual(self.nb("exec", self.box, "--", "echo", "fine", env=env).stdout, b"fine\n")
        self.nb("unmount", self.mnt)
        self.nb("unmount", self.mnt2, env=self.env2)

    def test_one_ends_the_other_goes_on(self):
        self.both_mounted()
        process = self.printer(self.env2)
        first = process.stdout.read(1000)
        self.nb("unmount", self.mnt)
        wait_for(lambda: len(self.processes("nearbox", "daemon --target")) == 1, "the first daemon ended", 30)
        self.printed(process, first)
        self.check_second()

    def test_one_agent_killed_the_other_goes_on(self):
        agents = self.both_mounted()
        theirs, mine = (agents[path] for path in sorted(agents, key=os.path.getsize))  # the other is a byte longer
        process = self.printer(self.env2)
        first = process.stdout.read(1000)
        os.kill(theirs, signal.SIGKILL)
        for pid in self.daemons(self.env):
            os.kill(pid, signal.SIGKILL)
        self.printed(process, first)
        self.check_second()
        self.assertIn(mine, self.agents().values())
        # And the first comes back beside it.
        self.assertEqual(self.nb("exec", self.box, "--", "echo", "back").stdout, b"back\n")
        wait_for(lambda: len(self.agents()) == 2, "both agents run")

    def daemons(self, env):
        needle = f"XDG_STATE_HOME={env['XDG_STATE_HOME']}".encode()
        return [pid for pid in self.processes("nearbox", "daemon --target")
                if needle in pathlib.Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")]

    def check_second(self):
        done = self.run_cmd("sh", "-c", f"echo on > {self.mnt2}/on && cat {self.mnt2}/on")
        self.assertEqual((done.returncode, done.stdout), (0, b"on\n"), done.stderr)
        self.assertEqual((pathlib.Path(self.dir) / "on").read_text(), "on\n")
        self.assertEqual(self.nb("exec", self.box, "--", "echo", "fine", env=self.env2).stdout, b"fine\n")


if __name__ == "__main__":
    nbtest.main()
