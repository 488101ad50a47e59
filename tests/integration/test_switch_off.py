# SPDX-License-Identifier: Apache-2.0
"""Mechanisms switched off by their fault points: what a check finds with one it must miss without it.

So each check here runs twice, and a mechanism that stopped working cannot go unnoticed because its test looks at
nothing. Fallbacks for what a kernel or machine does not have are tested the same way: with the feature switched off.
"""
import errno
import os
import signal
import subprocess
import urllib.parse

import nbtest
from nbtest import NEARBOX, wait_for
from test_link import EXPECTED, PRINTER


def read(path):
    with open(path, "rb") as f:
        return f.read()


def write(path, data):
    """In place and without truncation, so that size and inode stay."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
    try:
        os.pwrite(fd, data, 0)
    finally:
        os.close(fd)


def listing(path):
    """Twice: reading a directory makes its atime stale, so that the second opendir(3) asks for its times once more."""
    return (os.listdir(path), sorted(os.listdir(path)))[1]


def there(path):
    try:
        os.lstat(path)
        return True
    except FileNotFoundError:
        return False


class Visibility(nbtest.Case):
    """A sandbox's root and two of its subdirectories mounted by one daemon: who sees what."""

    # Each: what is asked for first (so that the kernel has it), the change, and the question again. `m` is the
    # mount of the root, `a` and `b` those of its subdirectories, `s` the sandbox's own directory.
    CHECKS = {
        "content": (lambda p: read(p.a + "/f") == b"one", lambda p: write(p.m + "/a/f", b"two"),
                    lambda p: read(p.a + "/f") == b"two"),
        "content, upwards": (lambda p: read(p.m + "/b/f") == b"one", lambda p: write(p.b + "/f", b"two"),
                             lambda p: read(p.m + "/b/f") == b"two"),
        "hard link": (lambda p: read(p.a + "/hard") == b"one", lambda p: write(p.b + "/hard", b"two"),
                      lambda p: read(p.a + "/hard") == b"two"),
        "size": (lambda p: os.stat(p.a + "/grow").st_size == 3, lambda p: write(p.m + "/a/grow", b"longer"),
                 lambda p: os.stat(p.a + "/grow").st_size == 6),
        "mode": (lambda p: os.stat(p.a + "/mode").st_mode & 0o777 == 0o644, lambda p: os.chmod(p.m + "/a/mode", 0o600),
                 lambda p: os.stat(p.a + "/mode").st_mode & 0o777 == 0o600),
        "new name": (lambda p: not there(p.a + "/new"), lambda p: write(p.m + "/a/new", b"x"),
                     lambda p: there(p.a + "/new")),
        "listing": (lambda p: listing(p.b + "/list") == ["x"], lambda p: os.mkdir(p.m + "/b/list/y"),
                    lambda p: listing(p.b + "/list") == ["x", "y"]),
        "removed": (lambda p: there(p.a + "/gone"), lambda p: os.unlink(p.m + "/a/gone"),
                    lambda p: not there(p.a + "/gone")),
        "renamed": (lambda p: there(p.a + "/old") and not there(p.b + "/moved"),
                    lambda p: os.rename(p.m + "/a/old", p.m + "/b/moved"),
                    lambda p: not there(p.a + "/old") and there(p.b + "/moved")),
        "new link": (lambda p: os.stat(p.a + "/linked").st_nlink == 1, lambda p: os.link(p.m + "/a/linked", p.m + "/l"),
                     lambda p: os.stat(p.a + "/linked").st_nlink == 2),
    }

    def setUp(self):
        super().setUp()
        self.box = self.stand_in()
        for name in ("a", "b", "b/list"):
            os.mkdir(f"{self.dir}/{name}")
        for name in ("a/f", "b/f", "a/hard", "a/grow", "a/mode", "b/list/x", "a/gone", "a/old", "a/linked", "e"):
            write(f"{self.dir}/{name}", b"one")
            os.chmod(f"{self.dir}/{name}", 0o644)
        os.link(f"{self.dir}/a/hard", f"{self.dir}/b/hard")
        self.places = type("Places", (), {"s": self.dir})
        for name, where in (("m", ""), ("a", "/a"), ("b", "/b")):
            point = self.home / f"mount-{name}"
            point.mkdir()
            setattr(self.places, name, str(point))
        if self.owner:
            self.chown_all(self.home)

    def mount_all(self):
        for name, where in (("m", ""), ("a", "/a"), ("b", "/b")):
            self.mount(f"{self.box}:{self.dir}{where}", getattr(self.places, name))
        self.assertEqual(len(self.nb_json("status")["daemons"]), 1)

    def ask(self, question):
        return self.in_user(lambda: question(self.places))

    def between_mounts(self, seen):
        for name, (before, change, after) in self.CHECKS.items():
            with self.subTest(name):
                self.assertTrue(self.ask(before), "before the change")
                self.ask(lambda p, change=change: change(p) or True)
                if seen:
                    wait_for(lambda after=after: self.ask(after), f"{name} is seen", 10)
        if seen:
            return
        self.nb("flush", self.places.m)  # whatever was to be told would have been told by now
        for name, (_, _, after) in self.CHECKS.items():
            with self.subTest(name):
                self.assertFalse(self.ask(after), "seen without being told")

    def test_between_mounts(self):
        self.mount_all()
        self.between_mounts(True)

    def test_between_mounts_off(self):
        self.mount_all()
        self.set_faults("fs.no_inval")
        self.between_mounts(False)

    def test_between_mounts_after_an_overflow(self):
        """What does not fit the queue: everything the kernel knows is invalidated instead."""
        self.set_faults("fs.inval_queue_full")
        self.mount_all()
        self.between_mounts(True)

    def test_between_mounts_after_an_overflow_without_epochs(self):
        self.set_faults("fs.inval_queue_full", "fs.no_epoch")
        self.mount_all()
        # What is in use below a directory outlives the directory's own entry in the kernel.
        user = self.popen("sh", "-c", "cd $0/b/list && exec 3< $0/a/gone 4< $0/a/old && echo ready && exec sleep 1000",
                          self.places.m, stdout=subprocess.PIPE)
        try:
            self.assertEqual(user.stdout.readline(), b"ready\n")
            self.between_mounts(True)
        finally:
            user.kill()
            user.communicate()

    def after_a_command(self, seen):
        """Content of equal size, a removal, a new name, a listing: at once after `exec`, at once after `flush`."""
        def known(p):
            return read(p.m + "/e") == b"one" and not there(p.m + "/n") and listing(p.b + "/list") == ["x"]

        def right(p):
            return [read(p.m + "/e") == b"two", read(p.a + "/f") == b"two", there(p.m + "/n"), not there(p.a + "/gone"),
                    listing(p.b + "/list") == ["x", "y"]]

        def second(p):
            return [read(p.m + "/e") == b"six", not there(p.m + "/n"), listing(p.b + "/list") == ["x"]]

        self.assertTrue(self.ask(known) and self.ask(lambda p: read(p.a + "/f") == b"one" and there(p.a + "/gone")))
        self.nb("exec", self.box, "-C", self.dir, "--", "sh", "-c",
                "printf two > e; printf two > a/f; echo > n; rm a/gone; mkdir b/list/y")
        self.assertEqual(self.ask(right), [seen] * 5)
        for line in ("printf six > e", "rm n", "rmdir b/list/y"):
            self.assertEqual(self.run_cmd("sh", "-c", line, cwd=self.dir).returncode, 0)
        self.nb("flush", self.places.m)
        if seen:
            self.assertEqual(self.ask(second), [True] * 3)
        else:
            self.assertEqual(self.ask(right), [False] * 5)

    def test_after_a_command(self):
        self.mount_all()
        self.after_a_command(True)

    def test_after_a_command_without_epochs(self):
        self.set_faults("fs.inval_queue_full", "fs.no_epoch")
        self.mount_all()
        self.after_a_command(True)

    def test_after_a_command_off(self):
        self.mount_all()
        self.set_faults("fs.no_inval")
        self.after_a_command(False)


class Cut(nbtest.Case):
    """What a session is resumed by."""

    def setUp(self):
        super().setUp()
        self.server_process = self.serve()
        self.id = self.create("--timeout", "600")
        self.link = nbtest.Forwarder(urllib.parse.urlparse(self.server["sandbox_url"]).port)
        self.addCleanup(self.link.close)
        self.env["E2B_SANDBOX_URL"] = f"http://127.0.0.1:{self.link.port}"

    def tearDown(self):
        self.stop(self.server_process)

    def lose_an_operation(self):
        """A mkdir on the mount whose operation is lost with the connection; its process, with the link up again."""
        self.mount(self.id)
        self.nb("exec", self.id, "--", "true")
        self.link.stalled.set()
        maker = self.popen("mkdir", f"{self.mnt}/made")
        wait_for(lambda: self.nb_json("status")["daemons"][0]["pending_operations"] == 1, "the operation is under way")
        self.link.refuse.set()
        self.link.cut()
        self.link.stalled.clear()
        self.link.refuse.clear()
        wait_for(lambda: self.nb_json("status")["daemons"][0]["link"]["up"], "the link is up again")
        return maker

    def test_operations_are_sent_again(self):
        maker = self.lose_an_operation()
        self.assertEqual(maker.wait(30), 0)
        self.assertEqual(self.nb("exec", self.id, "--", "ls").stdout, b"made\n")

    def test_operations_are_sent_again_off(self):
        self.set_faults("fs.no_resend")
        maker = self.lose_an_operation()
        # Another way in: a command by the agent waits for the operation.
        self.assertEqual(self.nb("exec", "--via", "envd", self.id, "--", "ls").stdout, b"")
        self.assertIsNone(maker.poll())
        maker.send_signal(signal.SIGKILL)
        maker.wait(10)

    def printer(self):
        process = self.popen(NEARBOX, "exec", self.id, "--ring", "65536", "--", "sh", "-c", PRINTER,
                             stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0)
        first = b""
        while len(first) < 10_000:
            first += process.stdout.read(10_000)
        self.link.cut()
        rest, said = process.communicate(timeout=120)
        return first + rest == EXPECTED and said == b""  # what is gone already is told on stderr

    def test_output_goes_on_by_offset(self):
        self.assertTrue(self.printer())

    def test_output_goes_on_by_offset_off(self):
        self.set_faults("daemon.no_output_offset")
        self.assertFalse(self.printer())


class Fallbacks(nbtest.Case):
    def kill_daemon(self):
        for pid in self.processes("nearbox", "daemon --target"):
            os.kill(pid, signal.SIGKILL)
        wait_for(lambda: not self.processes("nearbox", "daemon --target"), "the daemon is gone")

    def test_watchdog(self):
        self.mount(f"{self.stand_in()}:{self.dir}")
        self.assertEqual(len(self.processes("fuse-watchdog")), 1)
        self.kill_daemon()
        wait_for(lambda: not nbtest.mounts_below(str(self.home)), "the dead mount is gone", 10)

    def test_watchdog_off(self):
        """Without it a dead mount stays until the next daemon clears it."""
        box = self.stand_in()
        self.set_faults("fs.no_watchdog")
        self.mount(f"{box}:{self.dir}")
        self.assertEqual(self.processes("fuse-watchdog"), [])
        self.kill_daemon()

        def dead():
            try:
                os.stat(os.path.join(self.mnt, "never asked for before"))  # the root itself is cached
            except OSError as e:
                return e.errno == errno.ENOTCONN
            return False

        wait_for(lambda: self.in_user(dead), "the mount is dead")
        self.assertEqual(nbtest.mounts_below(str(self.home)), [self.mnt])
        self.nb("exec", box, "--", "true")
        self.assertEqual(nbtest.mounts_below(str(self.home)), [])

    def test_no_namespaces(self):
        """The embedded server on a machine that allows no namespaces: plain directories and processes, and it says so."""
        self.set_faults("sandbox_server.no_namespaces")
        server = self.serve()
        wait_for(lambda: "namespaces are not allowed here" in (self.home / "serve.log").read_text(), "it says so")
        sandbox = self.create("--timeout", "600")
        self.mount(sandbox)
        self.assertEqual(self.nb("exec", sandbox, "--", "sh", "-c", "echo in > f; cat f; readlink /proc/self/ns/mnt").stdout,
                         f"in\n{os.readlink('/proc/self/ns/mnt')}\n".encode())
        self.assertEqual(self.in_user(lambda: read(f"{self.mnt}/f")), b"in\n")
        self.in_user(lambda: write(f"{self.mnt}/g", b"out\n"))
        self.assertEqual(self.nb("exec", sandbox, "--", "cat", "g").stdout, b"out\n")
        self.nb("unmount", self.mnt)
        self.nb("sandbox", "kill", sandbox)
        self.stop(server)


if __name__ == "__main__":
    nbtest.main()
