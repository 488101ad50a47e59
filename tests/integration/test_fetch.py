# SPDX-License-Identifier: Apache-2.0
"""What status and top say of who reads what, and the limits of [fetch]."""
import errno
import json
import os
import subprocess

import nbtest

SIZE = 300_000


class Fetch(nbtest.Case):
    def setUp(self):
        super().setUp()
        self.box = self.stand_in()
        for name in "abcd":
            path = os.path.join(self.dir, name)
            with open(path, "wb") as f:
                f.write(name.encode() * SIZE)
            if self.owner:
                os.chown(path, self.owner.pw_uid, self.owner.pw_gid)

    def configure(self, text):
        path = self.home / ".config" / "nearbox" / "config.toml"
        path.parent.mkdir(parents=True)
        path.write_text(text)
        if self.owner:
            self.chown_all(self.home / ".config")

    def cat(self, name):
        return self.run_cmd("cat", os.path.join(self.mnt, name))

    def daemon(self):
        daemons = self.nb_json("status")["daemons"]
        self.assertEqual(len(daemons), 1)
        return daemons[0]

    def program(self, name):
        found = [p for p in self.daemon()["programs"] if p["name"] == name]
        self.assertEqual(len(found), 1, f"{name} in {self.daemon()['programs']}")
        return found[0]

    def test_bytes_by_program(self):
        """Bytes count once, for the program that had them fetched; what is cached counts for nobody."""
        self.mount(f"{self.box}:{self.dir}")
        self.assertEqual(self.cat("a").stdout, b"a" * SIZE)
        self.assertEqual(self.program("cat")["fetched_bytes"], SIZE)
        subprocess.run(["head", "-c", str(SIZE), os.path.join(self.mnt, "a")], check=True, stdout=subprocess.DEVNULL,
                       **self.as_user())
        self.assertEqual([p["name"] for p in self.daemon()["programs"]], ["cat"])
        self.assertEqual(self.run_cmd("head", "-c", str(SIZE), os.path.join(self.mnt, "b")).stdout, b"b" * SIZE)
        self.assertEqual(self.program("head")["fetched_bytes"], SIZE)
        self.assertEqual(self.program("cat")["fetched_bytes"], SIZE)

    def test_counters(self):
        """The counters of docs/metrics.md are there and say what happened."""
        self.mount(f"{self.box}:{self.dir}")
        before = self.daemon()
        self.assertIsNone(before["cache"]["hit_rate"])
        self.cat("a")
        now = self.daemon()
        self.assertEqual(now["cache"]["fetched"], SIZE)
        self.assertEqual(now["cache"]["bytes"], SIZE)
        self.assertTrue(0 <= now["cache"]["hit_rate"] <= 1)
        self.assertGreater(now["link"]["round_trips"], before["link"]["round_trips"])
        self.assertGreater(now["link"]["bytes_in"], before["link"]["bytes_in"])
        self.assertEqual(now["mounts"][0]["bytes_read"], SIZE)
        self.assertGreater(now["mounts"][0]["requests"], before["mounts"][0]["requests"])
        self.assertGreaterEqual(now["tree"]["nodes"], 5)  # and the directories above
        with open(os.path.join(os.path.dirname(__file__), "..", "..", "docs", "metrics.md"), encoding="utf-8") as f:
            text = f.read()
        for group in ("link", "tree", "cache", "prefetch"):
            for name in now[group]:
                self.assertIn(f"`{group}.{name}`", text)
        for name in now["mounts"][0]:
            self.assertIn(f"`mounts[].{name}`", text)
        for name in now["programs"][0]:
            self.assertIn(f"`programs[].{name}`", text)

    def test_top(self):
        self.mount(f"{self.box}:{self.dir}")
        self.cat("a")
        pictures = self.nb("top", "--count", "2", "--json").stdout.splitlines()
        self.assertEqual(len(pictures), 2)
        self.assertEqual(json.loads(pictures[1])["daemons"][0]["programs"][0]["name"], "cat")
        text = self.nb("top", "--count", "1").stdout.decode()
        self.assertIn(self.mnt, text)
        self.assertRegex(text, r"cat +fetched 300 kB")
        self.assertNotIn("\033", text)  # a screen is cleared on a terminal alone

    def test_a_denied_program_reads_what_is_here_alone(self):
        self.configure('[fetch]\ndeny = ["ca*"]\n')
        self.mount(f"{self.box}:{self.dir}")
        refused = self.cat("a")
        self.assertEqual(refused.returncode, 1)
        self.assertIn(os.strerror(errno.EACCES), refused.stderr.decode())
        self.assertEqual(self.run_cmd("head", "-c", str(SIZE), os.path.join(self.mnt, "a")).stdout, b"a" * SIZE)
        self.assertEqual(self.cat("a").stdout, b"a" * SIZE)
        self.assertGreater(self.program("cat")["refused"], 0)
        self.assertEqual(self.program("cat")["fetched_bytes"], 0)
        self.assertIn("reads of cat were refused", self.nb("status").stdout.decode())

    def test_a_program_whose_hour_is_used_up(self):
        self.configure('[fetch]\nmax_per_hour = "350kB"\n')
        self.mount(f"{self.box}:{self.dir}")
        self.assertEqual(self.cat("a").returncode, 0)
        self.assertEqual(self.cat("b").returncode, 0)  # begun with some left
        refused = self.cat("c")
        self.assertEqual(refused.returncode, 1)
        self.assertIn(os.strerror(errno.EDQUOT), refused.stderr.decode())
        self.assertEqual(self.cat("a").returncode, 0)
        self.assertEqual(self.run_cmd("head", "-c", "1", os.path.join(self.mnt, "c")).stdout, b"c")

    def test_bad_settings(self):
        self.configure('[fetch]\ndeny = "cat"\n')
        self.assertIn(b"fetch.deny", self.nb("mount", f"{self.box}:{self.dir}", self.mnt, code=None).stderr)
        self.assertEqual(nbtest.mounts_below(str(self.home)), [])


if __name__ == "__main__":
    nbtest.main()
