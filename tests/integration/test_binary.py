# SPDX-License-Identifier: Apache-2.0
"""What the programs need of a machine: old enough symbols, no library that may be missing, a static agent."""
import json
import os
import pathlib
import re
import subprocess

import nbtest
from nbtest import AGENT, NEARBOX

NEWEST = {"GLIBC": (2, 35), "GLIBCXX": (3, 4, 30), "CXXABI": (1, 3, 13)}
STATIC_ONLY = ("libfuse3", "libzstd", "libxxhash", "libsqlite3")
MAX_AGENT = 12 * 1024 * 1024
# Calls that read /etc/nsswitch.conf, ask a resolver or read locale archives. (dlopen is there: the
# static libc has it for character sets, which only setlocale would choose.)
NO_SYMBOLS = {"getpwnam", "getpwnam_r", "getpwuid", "getpwuid_r", "getgrnam", "getgrnam_r", "getgrgid", "getgrgid_r",
              "getgrouplist", "initgroups", "getaddrinfo", "getnameinfo", "gethostbyname", "gethostbyaddr", "res_init",
              "setlocale", "newlocale", "iconv_open"}


def tool(*args):
    return subprocess.run(args, check=True, capture_output=True, text=True, env={**os.environ, "LC_ALL": "C"}).stdout


class Binary(nbtest.Case):
    def test_no_symbol_is_too_new(self):
        needed = set(re.findall(r"\b(GLIBC|GLIBCXX|CXXABI)_([0-9.]+)\b", tool("objdump", "-T", NEARBOX)))
        self.assertTrue({"GLIBC", "GLIBCXX"} <= {name for name, _ in needed}, needed)
        for name, version in needed:
            self.assertLessEqual(tuple(map(int, version.split("."))), NEWEST[name], f"{name}_{version}")

    def test_libraries(self):
        needed = re.findall(r"\(NEEDED\).*\[(.*)\]", tool("readelf", "-dW", NEARBOX))
        self.assertIn("libc.so.6", needed)
        for library in needed:
            self.assertFalse(library.startswith(STATIC_ONLY), needed)

    def test_agent_is_static(self):
        if nbtest.SANITIZED:
            self.skipTest("sanitizers need a dynamic agent")
        self.assertNotRegex(tool("readelf", "-lW", AGENT), r"\b(INTERP|DYNAMIC)\b")
        self.assertLess(os.path.getsize(AGENT), MAX_AGENT)

    def test_agent_has_no_nss_dns_or_locale(self):
        if nbtest.SANITIZED:
            self.skipTest("sanitizers bring their own")
        names = {line.split()[-1].split("@")[0] for line in tool("nm", AGENT).splitlines() if line.strip()}
        self.assertGreater(len(names), 1000, "the agent was stripped")
        self.assertEqual(names & NO_SYMBOLS, set())

    def test_starts_without_libfuse3_and_dev_fuse(self):
        """In a mount namespace with no libfuse3.so and no /dev/fuse: all but mounts works."""
        if os.getuid() != 0:
            self.skipTest("a mount namespace needs root")
        box = self.stand_in()
        script = self.home / "inside"
        script.write_text(
            "set -e\n"
            "[ ! -e /dev/fuse ]\n"
            "for f in /lib/*/libfuse3.so* /usr/lib/*/libfuse3.so* /usr/local/lib/libfuse3.so*; do\n"
            "  [ ! -s $f ] || exit 9\n"
            "done\n"
            f"{NEARBOX} --version\n"
            f"{NEARBOX} doctor --json || [ $? = 1 ]\n"
            f"{NEARBOX} exec {box} -- echo works\n")
        script.chmod(0o755)
        empty = self.home / "empty"
        empty.touch()
        # /dev without fuse: a few nodes bound into a tmpfs; the libraries: an empty file over each.
        outside = ["mkdir -p /mnt", "mount -t tmpfs none /mnt"]
        for node in ("null", "zero", "urandom", "random", "tty", "full"):
            outside += [f"touch /mnt/{node}", f"mount --bind /dev/{node} /mnt/{node}"]
        outside.append("mount --rbind /mnt /dev")
        for directory in ("/lib", "/usr/lib", "/usr/local/lib"):
            for library in pathlib.Path(directory).glob("**/libfuse3.so*"):
                outside.append(f"mount --bind {empty} {library.resolve()}")
        drop = f"setpriv --reuid {self.owner.pw_uid} --regid {self.owner.pw_gid} --clear-groups " if self.owner else ""
        outside.append(f"exec {drop}sh {script}")
        done = subprocess.run(["unshare", "-m", "sh", "-ec", "\n".join(outside)], env=self.env, capture_output=True,
                              timeout=120, stdin=subprocess.DEVNULL)
        self.assertEqual(done.returncode, 0, (done.stdout, done.stderr, self.logs()))
        version, doctor, works = done.stdout.decode().splitlines()
        self.assertRegex(version, r"^(nearbox )?[0-9]+\.[0-9]+")
        checks = {check["name"]: check for check in json.loads(doctor)["checks"]}
        self.assertFalse(checks["fuse"]["ok"])
        self.assertIn("/dev/fuse is missing", checks["fuse"]["text"])
        self.assertTrue(checks["agent"]["ok"], checks)
        self.assertEqual(works, "works")


if __name__ == "__main__":
    nbtest.main()
