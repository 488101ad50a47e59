# SPDX-License-Identifier: Apache-2.0
"""Daemon, agent and server are killed: the next command recovers, no dead mount stays."""
import os
import random
import signal

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


if __name__ == "__main__":
    nbtest.main()
