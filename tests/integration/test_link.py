# SPDX-License-Identifier: Apache-2.0
"""The link to a sandbox of the embedded server is stalled and cut under running commands and mounts."""
import subprocess
import time
import urllib.parse

import nbtest
from nbtest import NEARBOX

# 1 MB, a line at a time, through a ring of 64 KiB.
PRINTER = "i=0; while [ $i -lt 20000 ]; do printf 'line %044d\\n' $i; i=$((i+1)); done; exit 42"
EXPECTED = b"".join(b"line %044d\n" % i for i in range(20000))


class Link(nbtest.Case):
    def setUp(self):
        super().setUp()
        self.server_process = self.serve()
        self.id = self.create("--timeout", "600")
        port = urllib.parse.urlparse(self.server["sandbox_url"]).port
        self.link = nbtest.Forwarder(port)
        self.addCleanup(self.link.close)
        self.env["E2B_SANDBOX_URL"] = f"http://127.0.0.1:{self.link.port}"

    def tearDown(self):
        self.stop(self.server_process)

    def run_printer(self, disturb):
        process = self.popen(NEARBOX, "exec", self.id, "--ring", "65536", "--", "sh", "-c", PRINTER,
                             stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0)
        first = b""  # unbuffered: communicate() reads the descriptor itself
        while len(first) < 10_000:
            first += process.stdout.read(10_000)
        disturb()
        rest, err = process.communicate(timeout=120)
        self.assertEqual(process.returncode, 42, (err, self.logs()))
        self.assertEqual(len(first + rest), len(EXPECTED))
        self.assertEqual(first + rest, EXPECTED)

    def test_stalled_for_5_s(self):
        def disturb():
            self.link.stalled.set()
            time.sleep(5)  # the length of the outage is what is tested
            self.link.stalled.clear()

        self.run_printer(disturb)

    def test_cut_for_5_s(self):
        def disturb():
            self.link.refuse.set()
            self.link.cut()
            time.sleep(5)  # the length of the outage is what is tested
            self.link.refuse.clear()

        self.run_printer(disturb)

    def test_cut_again_and_again(self):
        def disturb():
            for _ in range(10):
                self.link.cut()
                time.sleep(0.3)  # the outages come while output runs; none is waited for

        self.run_printer(disturb)

    def test_mount_across_a_cut(self):
        self.mount(self.id)
        self.nb("exec", self.id, "--", "sh", "-c", "echo one > f1; echo two > f2")
        self.assertEqual(self.run_cmd("cat", f"{self.mnt}/f1").stdout, b"one\n")
        self.link.cut()
        self.assertEqual(self.run_cmd("cat", f"{self.mnt}/f2").stdout, b"two\n")
        self.run_cmd("sh", "-c", f"echo three > {self.mnt}/f3")
        self.link.cut()
        self.assertEqual(self.nb("exec", self.id, "--", "cat", "f3").stdout, b"three\n")
        self.nb("unmount", self.mnt)

    def test_the_agent_stays_off_the_network(self):
        """Sandboxes of the embedded server share this machine's network: the agent is on loopback alone."""
        self.nb("exec", self.id, "--", "true")
        log = next(self.home.glob("state/nearbox/daemons/*/log")).read_text()
        port = int(log.rsplit("agent_found port=", 1)[1].split()[0])
        with open("/proc/net/tcp", encoding="ascii") as f:
            local = [line.split()[1] for line in f if line.split()[3] == "0A"]
        self.assertEqual([a for a in local if a.endswith(f":{port:04X}")], [f"0100007F:{port:04X}"])

    def test_via_envd(self):
        done = self.nb("exec", "--via", "envd", self.id, "--", "sh", "-c", "printf out; printf err >&2; exit 3", code=3)
        self.assertEqual((done.stdout, done.stderr), (b"out", b"err"))
        data = bytes(range(256)) * 200
        self.assertEqual(self.nb("exec", "--via", "envd", self.id, "--", "cat", input=data).stdout, data)


if __name__ == "__main__":
    nbtest.main()
