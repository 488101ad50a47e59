# SPDX-License-Identifier: Apache-2.0
"""`nearbox sync` to a real agent, checked against the server's own directory."""
import contextlib
import ctypes
import hashlib
import json
import os
import pathlib
import random
import shutil
import signal
import stat
import subprocess
import threading
import time
import unittest

from nbtest import NEARBOX, SANITIZED, Case, main, wait_for


class SyncCase(Case):
    def setUp(self):
        super().setUp()
        self.box = self.stand_in()
        self.src = self.home / "src"
        self.dst = self.home / "dst"
        self.src.mkdir()
        self.own(self.src)

    def own(self, *paths):
        if self.owner:
            for path in paths:
                self.chown_all(path)

    def put(self, path, data="x\n", mode=None, mtime=None):
        full = self.src / path
        full.parent.mkdir(parents=True, exist_ok=True)
        full.write_bytes(data if isinstance(data, bytes) else data.encode())
        if mode is not None:
            full.chmod(mode)
        if mtime is not None:
            os.utime(full, (mtime, mtime))
        self.own(self.src)
        return full

    def sync(self, *options, code=0, src=None, dst=None):
        done = self.nb("sync", str(src or self.src), f"{self.box}:{dst or self.dst}", "--json", *options, code=code)
        return json.loads(done.stdout.splitlines()[-1])

    @staticmethod
    def tree(top):
        """Every name below: type, permission bits, content or target."""
        out = {}
        for base, dirs, files in os.walk(os.fsencode(top)):
            for name in dirs + files:
                full = os.path.join(base, name)
                info = os.lstat(full)
                rel = os.path.relpath(full, os.fsencode(top))
                if stat.S_ISLNK(info.st_mode):
                    out[rel] = ("link", os.readlink(full))
                elif stat.S_ISDIR(info.st_mode):
                    out[rel] = ("dir", stat.S_IMODE(info.st_mode))
                else:
                    with open(full, "rb") as f:
                        out[rel] = ("file", stat.S_IMODE(info.st_mode), f.read())
        return out

    def assert_same(self):
        self.assertEqual(self.tree(self.dst), self.tree(self.src))


class Basics(SyncCase):
    def test_walk(self):
        self.put("a.txt", "hello")
        self.put("dir/b", b"\0\xff" * 1000, 0o755)
        result = self.sync()
        self.assert_same()
        self.assertEqual((result["status"], result["totalFiles"], result["filesUploaded"], result["filesSent"]),
                         ("complete", 2, 2, 2))
        result = self.sync()
        self.assertEqual((result["filesSent"], result["filesUnchanged"], result["filesUploaded"]), (0, 2, 2))
        self.assertLessEqual(result["requests"], 2)

    def test_everything_that_a_tree_holds(self):
        self.put(".hidden", "dot")
        self.put("empty", b"")
        self.put("big", os.urandom(3 * 1024 * 1024 + 17))
        self.put("run.sh", "#!/bin/sh\n", 0o750)
        self.put("readonly", "r", 0o444)
        self.put("zwölf/ä b", "umlaut")
        for name in (b"new\nline", b"\xff\xfe-not-utf8", b"back\\slash", b"*?[glob]", b" space ", b"-dash", b"a" * 255):
            with open(os.path.join(os.fsencode(self.src), name), "wb") as f:
                f.write(name)
        (self.src / "nothing/in/here").mkdir(parents=True)
        (self.src / "private").mkdir(mode=0o700)
        (self.src / "link").symlink_to("a/b")
        (self.src / "dangling").symlink_to("/nowhere/at all")
        os.symlink(b"\xff\xfe", os.path.join(os.fsencode(self.src), b"odd-link"))
        self.own(self.src)
        result = self.sync()
        self.assert_same()
        self.assertEqual(result["symlinks"], 3)
        self.assertEqual(self.sync()["filesSent"], 0)

    def test_times(self):
        self.put("old", mtime=1_000_000_000)
        self.put("future", mtime=time.time() + 86_400)
        (self.src / "link").symlink_to("old")
        os.utime(self.src / "link", (1_100_000_000, 1_100_000_000), follow_symlinks=False)
        self.sync()
        self.assertEqual((self.dst / "old").stat().st_mtime, 1_000_000_000)
        self.assertEqual((self.dst / "link").lstat().st_mtime, 1_100_000_000)
        # A file from the future would be rebuilt for ever.
        self.assertLessEqual((self.dst / "future").stat().st_mtime, time.time())

    def test_changes(self):
        for i in range(20):
            self.put(f"d{i % 3}/f{i}", f"content {i}\n" * 50)
        self.sync()
        before = {p: os.stat(self.dst / p).st_mtime_ns for p in ("d0/f0", "d1/f1")}
        self.put("d0/f3", "other")
        self.put("new/deep/file", "n")
        (self.src / "d1/f4").unlink()
        (self.src / "d1/f7").chmod(0o700)
        os.utime(self.src / "d0/f0")  # touched, equal
        result = self.sync()
        self.assert_same()
        self.assertEqual((result["filesSent"], result["filesDeletedRemote"]), (3, 1))
        for path, mtime in before.items():
            self.assertEqual(os.stat(self.dst / path).st_mtime_ns, mtime, path)

    def test_types_change(self):
        self.put("file-dir", "f")
        self.put("dir-file/a", "a")
        self.put("dir-file/b/c", "c")
        self.put("file-link", "f")
        (self.src / "link-file").symlink_to("file-dir")
        self.put("x/y", "y")
        self.sync()
        (self.src / "file-dir").unlink()
        self.put("file-dir/in", "in")
        shutil.rmtree(self.src / "dir-file")
        self.put("dir-file", "now a file")
        (self.src / "file-link").unlink()
        (self.src / "file-link").symlink_to("dir-file")
        (self.src / "link-file").unlink()
        self.put("link-file", "a file now")
        shutil.rmtree(self.src / "x")
        (self.src / "x").symlink_to("file-dir")
        self.own(self.src)
        result = self.sync()
        self.assertEqual(result["failureCount"], 0)
        self.assert_same()

    def test_deletes_by_policy(self):
        self.put("a")
        self.put("gone/b", "b")
        self.sync()
        (self.dst / "theirs").write_text("made in the sandbox")
        (self.dst / "gone/output").write_text("made in the sandbox")
        shutil.rmtree(self.src / "gone")
        self.assertEqual(self.sync("--delete", "none")["filesDeletedRemote"], 0)
        self.assertTrue((self.dst / "gone/b").exists())
        self.assertEqual(self.sync()["filesDeletedRemote"], 1)
        self.assertFalse((self.dst / "gone/b").exists())
        self.assertEqual((self.dst / "gone/output").read_text(), "made in the sandbox")
        self.assertTrue((self.dst / "theirs").exists())

    def test_mirror_removes_what_is_not_here(self):
        self.put("a/b", "b")
        self.put(".nearboxignore", "build/\n")
        self.dst.mkdir()
        (self.dst / "old/deep").mkdir(parents=True)
        (self.dst / "old/deep/f").write_text("1")
        (self.dst / "build").mkdir()
        (self.dst / "build/out").write_text("kept: a rule takes it")
        (self.dst / "stray").symlink_to("nowhere")
        self.own(self.dst)
        result = self.sync("--dry-run", "--delete", "mirror")
        self.assertEqual(result["filesDeletedRemote"], 2)
        result = self.sync("--delete", "mirror")
        self.assertEqual(result["filesDeletedRemote"], 2)
        self.assertEqual((self.dst / "build/out").read_text(), "kept: a rule takes it")
        shutil.rmtree(self.dst / "build")
        self.assert_same()
        (self.dst / "a/b").write_text("changed there")
        self.sync("--delete", "mirror")
        self.assert_same()

    def test_rules_and_secrets(self):
        subprocess.run(["git", "init", "-q", str(self.src)], check=True, env={**os.environ, "HOME": str(self.home)})
        self.put(".gitignore", "*.log\nbuild/\n")
        self.put("x.log")
        self.put("build/out")
        self.put("node_modules/m/i.js")
        self.put(".env", "TOKEN=abc")
        self.put("id_rsa", "key")
        self.put("a.c")
        os.mkfifo(self.src / "pipe")
        result = self.sync()
        self.assertEqual(sorted(os.listdir(self.dst)), [".gitignore", "a.c"])
        self.assertEqual(sorted(result["secretsHeldBack"]), [".env", "id_rsa"])
        reasons = result["skipped"]["byReason"]
        self.assertEqual((reasons["secret"], reasons["gitignore"], reasons["special"]), (2, 2, 1))
        self.assertIn({"path": ".env", "reason": "secret"}, result["skipped"]["items"])
        self.sync("--no-gitignore", "--include-secrets", "--exclude", "a.c")
        self.assertTrue((self.dst / "x.log").exists() and (self.dst / ".env").exists())
        self.assertTrue((self.dst / "a.c").exists())  # left out now: not ours to delete

    def test_dry_run(self):
        self.put("a", "1")
        result = self.sync("--dry-run")
        self.assertEqual((result["status"], result["filesSent"]), ("dry-run", 1))
        self.assertFalse(self.dst.exists())
        self.sync()
        self.put("a", "2")
        self.put("b", "b")
        result = self.sync("--dry-run")
        self.assertEqual(sorted((c["action"], c["path"]) for c in result["changes"]), [("send", "a"), ("send", "b")])
        self.assertEqual((self.dst / "a").read_text(), "1")

    def test_words_and_progress(self):
        self.put("a", "1")
        done = self.nb("sync", str(self.src), f"{self.box}:{self.dst}")
        self.assertIn(b"sent 1 file, 0 unchanged", done.stdout)
        self.put("b", os.urandom(200_000))
        done = self.nb("sync", self.box + ":" + str(self.dst), "--json", cwd=self.src)
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        self.assertTrue(all("progress" in line for line in lines[:-1]))
        self.assertEqual(lines[-2]["progress"]["filesDone"], 1)
        self.assertEqual(lines[-1]["status"], "complete")

    def test_errors(self):
        done = self.nb("sync", str(self.home / "missing"), self.box, "--json", code=2)
        self.assertEqual(json.loads(done.stdout)["errorCode"], "local.not_found")
        self.put("f")
        done = self.nb("sync", str(self.src / "f"), self.box, "--json", code=2)
        self.assertEqual(json.loads(done.stdout)["errorCode"], "local.not_directory")
        done = self.nb("sync", "/tmp", "--json", code=2)
        self.assertEqual(json.loads(done.stdout)["errorCode"], "arg.missing")
        (self.home / "afile").write_text("x")
        self.own(self.home / "afile")
        done = self.sync(dst=self.home / "afile", code=2)
        self.assertEqual(done["errorCode"], "remote.not_directory")

    def test_default_directory(self):
        self.put("a")
        done = self.nb("sync", str(self.src), self.box, "--dry-run", "--json")
        # Absolute where it is there already.
        remote = json.loads(done.stdout.splitlines()[-1])["remotePath"]
        self.assertIn(remote, ("workspace", os.path.expanduser("~/workspace")))


class Moves(SyncCase):
    def test_renamed_file_is_moved(self):
        self.put("a/big", os.urandom(900_000))
        self.put("b/x", "x")
        self.sync()
        ino = (self.dst / "a/big").stat().st_ino
        (self.src / "b/big2").write_bytes(b"")
        (self.src / "a/big").rename(self.src / "b/big2")
        result = self.sync()
        self.assert_same()
        self.assertEqual(result["filesRenamed"], 1)
        self.assertEqual((self.dst / "b/big2").stat().st_ino, ino)
        self.assertLess(result["bytesSent"], 20_000)

    def test_renamed_directory_is_one_step(self):
        for i in range(3000):
            self.src.joinpath(f"lib/d{i % 50}").mkdir(parents=True, exist_ok=True)
            self.src.joinpath(f"lib/d{i % 50}/f{i}").write_bytes(random.Random(i).randbytes(200))
        self.own(self.src)
        self.sync()
        (self.dst / "lib/d1/output.o").write_text("built")
        ino = (self.dst / "lib").stat().st_ino
        (self.src / "lib").rename(self.src / "library")
        self.put("library/d1/f1", "edited meanwhile")
        (self.src / "library/d2/f2").unlink()
        result = self.sync()
        self.assertEqual((self.dst / "library").stat().st_ino, ino)
        self.assertEqual((self.dst / "library/d1/output.o").read_text(), "built")
        (self.dst / "library/d1/output.o").unlink()
        self.assert_same()
        self.assertLess(result["bytesSent"], 200_000)
        self.assertEqual(self.sync()["filesSent"], 0)

    def test_copies_are_made_there(self):
        self.put("one", os.urandom(500_000))
        self.sync()
        shutil.copy(self.src / "one", self.src / "two")
        self.own(self.src)
        result = self.sync()
        self.assert_same()
        self.assertEqual(result["filesCopied"], 1)
        self.assertLess(result["bytesSent"], 20_000)

    def test_source_that_changed_in_the_sandbox(self):
        self.put("one", os.urandom(50_000))
        self.put("old", os.urandom(60_000))
        self.sync()
        (self.dst / "one").write_text("other now")
        (self.dst / "old").write_text("other too")
        shutil.copy(self.src / "one", self.src / "two")
        (self.src / "old").rename(self.src / "new")
        self.own(self.src)
        result = self.sync(code=6)
        self.assertEqual((self.dst / "two").read_bytes(), (self.src / "two").read_bytes())
        self.assertEqual((self.dst / "new").read_bytes(), (self.src / "new").read_bytes())
        self.assertEqual((self.dst / "one").read_text(), "other now")
        self.assertEqual((self.dst / "old").read_text(), "other too")
        self.assertEqual([c["path"] for c in result["conflicts"]], ["old"])

    def test_large_file_sends_what_is_new(self):
        data = random.Random(1).randbytes(24 * 1024 * 1024)
        self.put("big", data)
        first = self.sync()
        self.assertGreater(first["bytesSent"], len(data))
        self.put("big", data[:9_000_000] + os.urandom(1_000_000) + data[9_000_000:])
        result = self.sync()
        self.assert_same()
        self.assertLess(result["bytesSent"], 1_400_000)
        self.assertEqual(self.sync()["filesSent"], 0)


class Conflicts(SyncCase):
    def setUp(self):
        super().setUp()
        self.put("f.txt", "base")
        self.put("g", "base")
        self.sync()

    def both(self):
        self.put("f.txt", "local")
        (self.dst / "f.txt").write_text("sandbox")

    def test_both_are_kept(self):
        self.both()
        result = self.sync(code=6)
        self.assertEqual(result["conflicts"], [{"path": "f.txt", "resolution": "kept-both", "keptAs": "f.sandbox.txt"}])
        self.assertEqual((self.dst / "f.txt").read_text(), "local")
        self.assertEqual((self.dst / "f.sandbox.txt").read_text(), "sandbox")
        self.assertEqual(self.sync()["conflictCount"], 0)

    def test_policies(self):
        self.both()
        result = self.sync("--conflicts", "prefer-remote")
        self.assertEqual((self.dst / "f.txt").read_text(), "sandbox")
        self.assertEqual((result["filesUploaded"], result["totalFiles"]), (1, 2))
        result = self.sync("--conflicts", "fail", code=6)
        self.assertEqual((result["status"], (self.dst / "f.txt").read_text()), ("partial", "sandbox"))
        self.sync("--conflicts", "prefer-local")
        self.assertEqual((self.dst / "f.txt").read_text(), "local")
        self.assertEqual(os.listdir(self.dst).count("f.sandbox.txt"), 0)

    def test_changed_in_the_sandbox_alone_is_left(self):
        (self.dst / "g").write_text("formatted")
        result = self.sync()
        self.assertEqual((self.dst / "g").read_text(), "formatted")
        self.assertEqual(result["remoteChanged"], {"count": 1, "items": ["g"]})
        self.assertEqual((result["filesUploaded"], result["totalFiles"]), (1, 2))
        self.sync("--conflicts", "prefer-local")
        self.assertEqual((self.dst / "g").read_text(), "base")

    def test_gone_in_the_sandbox_comes_again(self):
        (self.dst / "g").unlink()
        result = self.sync()
        self.assertEqual(result["filesSent"], 1)
        self.assert_same()

    def test_touched_in_the_sandbox_is_the_same(self):
        os.utime(self.dst / "g", (1_200_000_000, 1_200_000_000))
        result = self.sync()
        self.assertEqual((result["filesSent"], result["remoteChanged"]["count"]), (0, 0))
        self.assertEqual((self.dst / "g").stat().st_mtime, 1_200_000_000)

    def test_deleted_here_changed_there(self):
        (self.src / "g").unlink()
        (self.dst / "g").write_text("work")
        result = self.sync(code=6)
        self.assertEqual((self.dst / "g").read_text(), "work")
        self.assertEqual(result["conflicts"][0]["resolution"], "kept-remote")

    def test_an_empty_side_halts(self):
        for name in os.listdir(self.src):
            (self.src / name).unlink()
        result = self.sync(code=12)
        self.assertEqual(result["errorCode"], "sync.halted_empty")
        self.assertTrue((self.dst / "g").exists())

    def test_without_an_index_nothing_is_sent_twice(self):
        for i in range(300):
            self.put(f"many/f{i}", f"{i}" * 100)
        self.sync()
        shutil.rmtree(self.home / "state/nearbox/sync")
        (self.dst / "g").write_text("theirs")
        result = self.sync(code=6)
        self.assertEqual(result["filesSent"], 1)
        self.assertEqual((self.dst / "g.sandbox").read_text(), "theirs")
        self.assertLessEqual(result["requests"], 4)


class ClockCase(SyncCase):
    """What compares times rebuilds what changed, and nothing else, whatever the clocks say.

    A tool lays out files for two results, a and b; build() runs it in the sandbox's directory and names those it made.
    """
    suffix = ".c"

    def lay_out(self, mtime):
        raise NotImplementedError

    def build(self):
        raise NotImplementedError

    def text(self, name, change):
        return f"{name} changed {change}"

    def prepare(self, mtime):
        self.lay_out(mtime)
        for name in ("a", "b"):
            self.put(name + self.suffix, self.text(name, "never"), mtime=mtime)
        self.sync()
        self.assertEqual(self.build(), ["a", "b"])
        self.assertEqual(self.build(), [])

    def run_with_skew(self, seconds):
        now = time.time() + seconds
        a, b = "a" + self.suffix, "b" + self.suffix
        self.prepare(now - 100)
        kept = (self.dst / b).stat().st_mtime_ns
        for change in range(3):
            old = (self.dst / a).stat().st_mtime_ns
            self.put(a, self.text("a", change), mtime=now + change)
            os.utime(self.src / b, (now + change, now + change))
            self.sync()
            self.assertGreater((self.dst / a).stat().st_mtime_ns, old)
            self.assertEqual((self.dst / b).stat().st_mtime_ns, kept)
            self.assertEqual(self.build(), ["a"])
            self.assertEqual(self.build(), [])

    def run_with_a_clock_that_jumps(self):
        """Back and forth by hours between two edits; a time there is always later than the one before."""
        a = "a" + self.suffix
        self.prepare(time.time() - 100)
        for change, seconds in enumerate((7200, -7200, 86_400, -86_400)):
            old = (self.dst / a).stat().st_mtime_ns
            self.put(a, self.text("a", change), mtime=time.time() + seconds)
            self.sync()
            self.assertGreater((self.dst / a).stat().st_mtime_ns, old)
            self.assertEqual(self.build(), ["a"])
            self.assertEqual(self.build(), [])

    def run_with_an_edit_before_the_build(self):
        """Saved here before something was built there, sent after it: it is younger than what was built."""
        self.prepare(time.time() - 100)
        self.put("a" + self.suffix, self.text("a", "early"), mtime=time.time() - 50)
        self.sync()
        self.assertEqual(self.build(), ["a"])


class ClockTests:
    """For a tool's ClockCase."""

    def test_clocks_agree(self):
        self.run_with_skew(0)

    def test_this_clock_is_behind(self):
        self.run_with_skew(-7200)

    def test_this_clock_is_ahead(self):
        self.run_with_skew(7200)

    def test_a_clock_that_jumps(self):
        self.run_with_a_clock_that_jumps()

    def test_an_edit_that_was_under_way_while_it_was_built(self):
        self.run_with_an_edit_before_the_build()


class Make(ClockTests, ClockCase):
    def lay_out(self, mtime):
        self.put("Makefile", "all: a.o b.o\n%.o: %.c\n\t@echo $*; cp $< $@\n", mtime=mtime)

    def build(self):
        done = self.run_cmd("make", "-C", str(self.dst), "-s")
        self.assertEqual(done.returncode, 0, done.stderr)
        return sorted(done.stdout.decode().split())

    def test_a_time_that_was_in_the_future_there(self):
        self.prepare(time.time() - 100)
        ahead = time.time() + 5000
        os.utime(self.dst / "a.c", (ahead, ahead))
        self.put("a.c", "new")
        self.sync()
        self.assertGreater((self.dst / "a.c").stat().st_mtime, ahead)

    def test_switched_off(self):
        self.prepare(time.time() - 100)
        self.set_faults("agent.push_keep_times")
        self.put("a.c", "changed")
        self.sync()
        self.assertEqual(self.build(), [])  # and it should have been built


class Ninja(ClockTests, ClockCase):
    def lay_out(self, mtime):
        self.put("build.ninja", "rule copy\n  command = cp $in $out\n  description = made $out\n"
                                "build a.o: copy a.c\nbuild b.o: copy b.c\n", mtime=mtime)

    def build(self):
        done = self.run_cmd("ninja", "-C", str(self.dst), env={**self.env, "NINJA_STATUS": ""})
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        return sorted(line[5:-2] for line in done.stdout.decode().splitlines() if line.startswith("made "))


class Trouble(SyncCase):
    def daemon_agents(self):
        return self.processes("nearbox-agent", "serve")

    def test_unreadable_is_named(self):
        if not self.owner and os.getuid() == 0:
            self.skipTest("root reads everything")
        self.put("secret-file", "x", 0o000)
        self.put("fine", "y")
        result = self.sync(code=5)
        self.assertEqual((result["status"], result["errorCode"]), ("partial", "sync.partial"))
        self.assertEqual([(f["path"], f["code"]) for f in result["failures"]], [("secret-file", "file.unreadable")])
        self.assertEqual((self.dst / "fine").read_text(), "y")
        self.assertEqual((result["filesUploaded"], result["totalFiles"]), (1, 2))

    def test_changing_while_read_is_named(self):
        self.put("moving", "x")
        self.put("fine", "y")
        self.set_faults("push.changing moving")
        result = self.sync(code=5)
        self.assertEqual([(f["path"], f["code"]) for f in result["failures"]], [("moving", "file.changed")])
        self.assertTrue((self.dst / "fine").exists())
        self.set_faults()
        self.sync()
        self.assert_same()

    def test_damage_on_the_way_is_seen(self):
        self.put("a", "precious")
        self.put("b", "fine")
        self.set_faults("push.damage a")
        result = self.sync(code=5)
        self.assertEqual([f["path"] for f in result["failures"]], ["a"])
        self.assertFalse((self.dst / "a").exists())
        self.assertTrue((self.dst / "b").exists())

    def test_damage_in_a_large_file_is_seen(self):
        self.put("big", os.urandom(3_000_000))
        self.set_faults("push.damage big")
        self.sync(code=5)
        self.assertFalse((self.dst / "big").exists())
        self.set_faults()
        self.sync()
        self.assert_same()

    def test_full_disk(self):
        self.put("no-room", "x" * 1000)
        self.put("fine", "y")
        self.set_faults("agent.push_no_space no-room")
        result = self.sync(code=5)
        self.assertEqual([(f["path"], f["code"]) for f in result["failures"]], [("no-room", "remote.no_space")])
        self.assertTrue((self.dst / "fine").exists())
        self.set_faults()
        self.sync()
        self.assert_same()

    def test_really_full_disk(self):
        if self.owner or os.getuid() != 0:
            self.skipTest("needs a mount")
        small = self.home / "small"
        small.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(small)], check=True)
        self.addCleanup(subprocess.run, ["umount", "-l", str(small)])
        self.put("a", "fits")
        self.put("huge", os.urandom(6_000_000))
        self.put("mid", os.urandom(900_000))
        result = self.sync(dst=small / "box", code=5)
        self.assertEqual([(f["path"], f["code"]) for f in result["failures"]], [("huge", "remote.no_space")])
        self.assertEqual((small / "box/mid").read_bytes(), (self.src / "mid").read_bytes())

    def test_symlinked_directory_there_is_not_written_through(self):
        self.put("d/a", "1")
        self.put("e", "2")
        self.sync()
        outside = self.home / "outside"
        outside.mkdir()
        self.own(outside)
        shutil.rmtree(self.dst / "d")
        (self.dst / "d").symlink_to(outside)
        self.put("d/a", "changed")
        self.put("d/new", "new")
        result = self.sync(code=5)
        self.assertEqual(os.listdir(outside), [])
        self.assertIn("d/a", [f["path"] for f in result["failures"]])

    def test_directory_swapped_here_is_not_read_through(self):
        outside = self.home / "outside"
        outside.mkdir()
        (outside / "a").write_text("not yours")
        self.put("d/a", "1")
        self.own(outside)
        self.sync()
        shutil.rmtree(self.src / "d")
        (self.src / "d").symlink_to(outside)
        self.own(self.src)
        self.sync()
        self.assertTrue((self.dst / "d").is_symlink())

    def test_without_mount_ids(self):
        self.set_faults("agent.no_mount_id")
        self.put("a/b", "c")
        self.sync()
        self.assert_same()

    def test_two_at_a_time(self):
        for i in range(400):
            self.put(f"f{i}", os.urandom(2000)) if i == 0 else (self.src / f"f{i}").write_bytes(os.urandom(2000))
        self.own(self.src)
        first = self.popen(*self.command(), stdout=subprocess.PIPE)
        codes = {self.run_cmd(*self.command()).returncode, first.wait(60)}
        first.stdout.close()
        self.assertLessEqual(codes, {0, 11})
        self.sync()
        self.assert_same()

    def command(self):
        return (NEARBOX, "sync", str(self.src), f"{self.box}:{self.dst}", "--json")


class Swapper:
    """Exchanges two names again and again while it is entered; what was first is there again at its end."""
    EXCHANGE = 2  # renameat2(2)

    def __init__(self, one, other):
        self.names = [os.fsencode(one), os.fsencode(other)]
        self.libc = ctypes.CDLL(None, use_errno=True)
        self.over = threading.Event()
        self.thread = threading.Thread(target=self.run)
        self.count = 0

    def swap(self):
        if self.libc.renameat2(-100, self.names[0], -100, self.names[1], self.EXCHANGE) != 0:
            raise OSError(ctypes.get_errno(), "renameat2")
        self.count += 1

    def run(self):
        while not self.over.wait(0.002) or self.count % 2:
            with contextlib.suppress(FileNotFoundError):  # what is replaced by the sync is not there for a moment
                self.swap()

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        self.thread.join()


class Swapped(SyncCase):
    """A directory is swapped for a symlink that leads outside, in the middle of a transfer."""
    FILES = 150

    def setUp(self):
        super().setUp()
        self.outside = self.home / "outside"
        self.outside.mkdir()
        for i in range(self.FILES):
            (self.outside / f"f{i}").write_text(f"not yours {i}")
        (self.outside / "big").write_text("not yours")
        self.link = self.home / "swapped"
        self.link.symlink_to(self.outside)
        self.own(self.outside)
        if self.owner:
            os.chown(self.link, self.owner.pw_uid, self.owner.pw_gid, follow_symlinks=False)
        self.put("stays", "x")
        self.before = self.all_of(self.outside)

    @staticmethod
    def all_of(top):
        return {p.name: (p.read_bytes(), p.stat().st_ino, p.stat().st_mtime_ns, p.stat().st_ctime_ns, p.stat().st_mode)
                for p in top.iterdir()}

    def fill(self, text):
        (self.src / "d").mkdir(exist_ok=True)
        for i in range(self.FILES):
            (self.src / f"d/f{i}").write_text(f"{text} {i}")
        self.own(self.src)

    def assert_kept_apart(self):
        self.assertEqual(self.all_of(self.outside), self.before)
        for path, what in self.tree(self.dst).items():
            if what[0] == "file":
                self.assertNotIn(b"not yours", what[2], path)

    def test_here(self):
        self.fill("first")
        self.sync()
        for i in range(8):
            self.fill(f"round {i}")
            with Swapper(self.src / "d", self.link):
                self.sync(code=None)
            self.assert_kept_apart()
        self.sync()
        self.assert_same()

    def test_there(self):
        self.fill("first")
        self.sync()
        for i in range(8):
            self.fill(f"round {i}")
            with Swapper(self.dst / "d", self.link):
                self.sync(code=None)
            self.assert_kept_apart()
        self.sync(code=None)
        self.sync()
        self.assert_same()

    def stopped_in_the_middle(self):
        """A sync of a large file, stopped when half of it is there; returns what continues it."""
        self.put("d/big", os.urandom(64 * 1024 * 1024))
        started = self.popen(NEARBOX, "sync", str(self.src), f"{self.box}:{self.dst}", "--json", stdout=subprocess.PIPE)
        half = lambda: [p for p in self.home.glob(".nearbox-sync-*/s-*") if p.stat().st_size > 4 * 1024 * 1024]
        wait_for(lambda: half() or started.poll() is not None, "a part of it")
        daemons = self.processes("nearbox daemon")
        for pid in daemons:
            os.kill(pid, signal.SIGSTOP)
        self.assertFalse((self.dst / "d/big").exists(), "it was there at once")

        def go_on():
            for pid in daemons:
                os.kill(pid, signal.SIGCONT)
            out, _ = started.communicate(timeout=100)
            return json.loads(out.splitlines()[-1])
        return go_on

    def test_here_in_the_middle_of_a_file(self):
        self.sync()
        go_on = self.stopped_in_the_middle()
        (self.src / "d").rename(self.home / "real")
        self.link.rename(self.src / "d")
        go_on()
        self.assert_kept_apart()
        self.sync(code=None)
        self.assert_kept_apart()
        self.assert_same()

    def test_there_in_the_middle_of_a_file(self):
        self.fill("first")
        self.sync()
        go_on = self.stopped_in_the_middle()
        (self.dst / "d").rename(self.home / "real")
        self.link.rename(self.dst / "d")
        result = go_on()
        self.assert_kept_apart()
        self.assertEqual(result["status"], "partial")
        self.assertEqual([f["path"] for f in result["failures"]], ["d/big"])
        (self.dst / "d").rename(self.link)
        (self.home / "real").rename(self.dst / "d")
        self.sync()
        self.assert_same()


class Cut(SyncCase):
    def fill(self, count=1500, size=3000):
        for i in range(count):
            path = self.src / f"d{i % 20}/f{i}"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(os.urandom(size))
        self.own(self.src)

    def agents(self):
        return self.processes("nearbox-agent", "serve")

    def relays(self):
        return self.processes("nearbox-agent", "connect")

    @unittest.skipIf(SANITIZED, "an abort is a report")
    def test_agent_dies_in_the_middle(self):
        self.fill()
        self.set_faults("agent.push_crash_after_place d3/f1203")
        started = self.popen(*self.command(), stdout=subprocess.PIPE)
        wait_for(lambda: (self.dst / "d3/f1203").exists(), "the file at which the agent dies")
        self.set_faults()
        out, _ = started.communicate(timeout=100)
        self.assertEqual(started.returncode, 0, out[-2000:])
        self.assert_same()

    @unittest.skipIf(SANITIZED, "an abort is a report")
    def test_agent_dies_before_it_places(self):
        self.fill(300)
        self.sync()
        self.put("d0/f0", "new content")
        self.set_faults("agent.push_crash_before_place d0/f0")
        started = self.popen(*self.command(), stdout=subprocess.PIPE)
        agents = self.agents()
        wait_for(lambda: self.agents() != agents or started.poll() is not None, "the agent's end")
        self.set_faults()
        started.communicate(timeout=100)
        self.sync()
        self.assert_same()

    def command(self):
        return (NEARBOX, "sync", str(self.src), f"{self.box}:{self.dst}", "--json")

    def cut(self, count):
        """Ends `count` of the link's connections in the middle of a sync; each may repeat what was under way."""
        self.fill(3000, 8000)
        started = self.popen(*self.command(), stdout=subprocess.PIPE)
        wait_for(lambda: (self.dst / "d1").exists() and len(os.listdir(self.dst / "d1")) > 5, "some files")
        for pid in self.relays()[:count]:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        out, _ = started.communicate(timeout=100)
        self.assertEqual(started.returncode, 0, out[-2000:])
        self.assert_same()
        window = 8 * 1024 * 1024
        self.assertLess(json.loads(out.splitlines()[-1])["bytesSent"], 3000 * 8000 * 1.02 + count * window)

    def test_one_connection_is_cut(self):
        self.cut(1)

    def test_link_is_cut(self):
        self.cut(2)

    def test_a_killed_sync_goes_on_where_it_was(self):
        self.fill(3000, 8000)
        started = self.popen(*self.command(), stdout=subprocess.PIPE)
        wait_for(lambda: (self.dst / "d1").exists() and len(os.listdir(self.dst / "d1")) > 60, "half of it")
        for pid in self.processes("nearbox daemon"):
            os.kill(pid, signal.SIGKILL)
        started.communicate(timeout=60)
        result = self.sync()
        self.assert_same()
        self.assertEqual(result["filesUploaded"], 3000)

    def test_a_large_file_goes_on_where_it_was(self):
        data = os.urandom(40 * 1024 * 1024)
        self.put("big", data)
        started = self.popen(*self.command(), stdout=subprocess.PIPE)
        stages = lambda: [p for p in self.home.glob(".nearbox-sync-*/s-*") if p.stat().st_size > 8 * 1024 * 1024]
        wait_for(lambda: stages() or started.poll() is not None, "a part of it")
        for pid in self.processes("nearbox daemon"):
            os.kill(pid, signal.SIGKILL)
        started.communicate(timeout=60)
        if not (self.dst / "big").exists():
            result = self.sync()
            self.assertLess(result["bytesSent"], len(data) - 6 * 1024 * 1024)
        self.assert_same()

    def test_client_that_goes_stops_the_sync(self):
        self.fill(3000, 8000)
        started = self.popen(*self.command(), stdout=subprocess.PIPE)
        wait_for(lambda: (self.dst / "d1").exists(), "a beginning")
        started.send_signal(signal.SIGINT)
        started.communicate(timeout=30)
        self.sync()
        self.assert_same()

    def test_nothing_is_left_beside(self):
        self.fill(50)
        self.sync()
        wait_for(lambda: not self.processes("nearbox daemon"), "the daemon's end")
        self.assertEqual([p for p in self.home.glob(".nearbox-sync-*/*")], [])


class SwitchedOff(SyncCase):
    """With a safeguard switched off, what it guards against happens."""

    def test_digest_check(self):
        self.put("a", "precious")
        self.set_faults("push.damage a", "agent.push_no_digest_check")
        self.sync()
        self.assertNotEqual((self.dst / "a").read_bytes(), b"precious")

    def test_base_condition(self):
        self.put("a", "base")
        self.sync()
        self.put("a", "local")
        (self.dst / "a").write_text("sandbox")
        self.set_faults("agent.push_no_base_check")
        self.sync()
        self.assertEqual(os.listdir(self.dst), ["a"])  # the sandbox's version is lost

    def edit_within_one_tick(self):
        """Two contents of one size, whose stamps a clock that steps by the minute cannot tell apart."""
        while True:
            path = self.put("a", "one")
            first = path.stat()
            self.sync()
            with open(path, "r+b") as f:
                f.write(b"two")
            os.utime(path, ns=(first.st_atime_ns, first.st_mtime_ns))
            if int(first.st_ctime) // 60 == int(path.stat().st_ctime) // 60:
                return
            path.unlink()
            self.put("other")
            self.sync()

    def test_racy_rule(self):
        self.set_faults("sync.coarse_times")
        self.edit_within_one_tick()
        self.sync()
        self.assertEqual((self.dst / "a").read_text(), "two")

    def test_racy_rule_off(self):
        self.set_faults("sync.coarse_times", "scan.no_racy_rule")
        self.edit_within_one_tick()
        self.sync()
        self.assertEqual((self.dst / "a").read_text(), "one")


if __name__ == "__main__":
    main()
