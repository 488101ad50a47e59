# SPDX-License-Identifier: Apache-2.0
"""What the integration tests share: a private home, the programs, mounts that go away, faults, a link to cut.

Environment: NEARBOX_BIN (directory of nearbox and nearbox-agent), NB_TEST_USER (run the programs as
this user; needs root).
"""
import contextlib
import ctypes
import json
import mmap
import os
import pathlib
import pickle
import pwd
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import unittest

BIN = pathlib.Path(os.environ.get("NEARBOX_BIN", "build/dev/bin")).resolve()
NEARBOX = str(BIN / "nearbox")
AGENT = str(BIN / "nearbox-agent")
USER = os.environ.get("NB_TEST_USER", "")
PYTHON = shutil.which("python3", path="/usr/bin:/bin") or sys.executable  # one that the user may run


def sanitized():
    """Whether the programs were built with a sanitizer: its functions are among the names in the file."""
    with open(NEARBOX, "rb") as f, mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ) as data:
        return re.search(rb"\0__[at]san_init\0", data) is not None


SANITIZED = sanitized()
# An abort of any program is a report as well.
SANITIZER_OPTIONS = {
    "ASAN_OPTIONS": "handle_abort=1:detect_stack_use_after_return=1:strict_string_checks=1:strict_init_order=1",
    "UBSAN_OPTIONS": "print_stacktrace=1",
    "TSAN_OPTIONS": "handle_abort=1:second_deadlock_stack=1",
}
# What a report looks like in the log of a program that could not be told where to write one.
REPORT = re.compile(r"(ERROR|WARNING|FATAL): \w*Sanitizer|Sanitizer(:DEADLYSIGNAL| has encountered)|runtime error: |"
                    r"ERROR: Can't open file")


def wait_for(condition, what, seconds=20.0):
    """Waits until condition() is true; fails the test with `what` at the deadline."""
    limit = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > limit:
            raise AssertionError(f"not within {seconds} s: {what}")
        time.sleep(0.01)  # the pause between two looks at a condition with a deadline


def descendants_of_home(home):
    """Pids of processes whose environment says that they belong to this test."""
    found = []
    # A sandbox's init has of its server's environment the fault file alone.
    needles = {f"NB_TEST_HOME={home}".encode(), f"NEARBOX_FAULT_FILE={home}/faults".encode()}
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        with contextlib.suppress(OSError):
            with open(f"/proc/{entry}/environ", "rb") as f:
                if needles & set(f.read().split(b"\0")):
                    found.append(int(entry))
    return [pid for pid in found if pid != os.getpid()]


def mounts_below(prefix):
    out = []
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as f:
        for line in f:
            point = line.split()[4].replace("\\040", " ")
            if point.startswith(prefix):
                out.append(point)
    return out


class Forwarder:
    """A TCP forwarder that can stall (nothing passes, nothing closes) and cut (all closed)."""

    def __init__(self, port):
        self.target = port
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.stalled = threading.Event()
        self.refuse = threading.Event()
        self.lock = threading.Lock()
        self.pairs = []
        self.ended = {}  # pumps of each pair that still run
        self.stop = False
        self.thread = threading.Thread(target=self._accept, daemon=True)
        self.thread.start()

    def _accept(self):
        while not self.stop:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            if self.refuse.is_set():
                client.close()
                continue
            try:
                server = socket.create_connection(("127.0.0.1", self.target), 10)
            except OSError:
                client.close()
                continue
            with self.lock:
                self.pairs.append((client, server))
                self.ended[(client, server)] = 2
            for a, b in ((client, server), (server, client)):
                threading.Thread(target=self._pump, args=(a, b), daemon=True).start()

    def _pump(self, a, b):
        try:
            while not self.stop:
                if self.stalled.is_set():
                    time.sleep(0.02)
                    continue
                if not select.select([a], [], [], 0.1)[0]:
                    continue
                if self.stalled.is_set():
                    continue
                data = a.recv(65536)
                if not data:
                    break
                b.sendall(data)
        except OSError:
            pass
        for s in (a, b):
            with contextlib.suppress(OSError):
                s.shutdown(socket.SHUT_RDWR)
        with self.lock:
            self.ended[(a, b) if (a, b) in self.ended else (b, a)] -= 1
            for pair in [p for p, n in self.ended.items() if n == 0]:
                del self.ended[pair]
                for s in pair:
                    s.close()

    def cut(self):
        with self.lock:
            pairs, self.pairs = self.pairs, []
        for pair in pairs:
            for s in pair:
                with contextlib.suppress(OSError):
                    s.shutdown(socket.SHUT_RDWR)

    def close(self):
        self.stop = True
        self.cut()
        self.listener.close()
        self.thread.join(5)


class Case(unittest.TestCase):
    """A test with a home of its own; nothing it started or mounted outlives it."""

    def setUp(self):
        base = "/tmp"
        self.home = pathlib.Path(tempfile.mkdtemp(prefix="nbt-", dir=base)).resolve()
        self.owner = pwd.getpwnam(USER) if USER else None
        self.faults = self.home / "faults"
        self.faults.touch()
        self.env = dict(os.environ)
        for name in list(self.env):
            if name.startswith(("E2B_", "NEARBOX_", "XDG_")):
                del self.env[name]
        self.env.update(HOME=str(self.home), XDG_STATE_HOME=str(self.home / "state"),
                        XDG_RUNTIME_DIR=str(self.home / "run"),
                        NEARBOX_AGENT_STATE_DIR=str(self.home / "agent"), NEARBOX_FAULT_FILE=str(self.faults),
                        NB_TEST_HOME=str(self.home), LC_ALL="C.UTF-8")
        for name in ("state", "run", "mnt", "dir"):
            (self.home / name).mkdir(mode=0o700)
        self.reports = {}  # by file
        if SANITIZED:
            self.report_to(self.home / "reports")
            self.addCleanup(self._fail_for_reports)
        self.mnt = str(self.home / "mnt")
        self.dir = str(self.home / "dir")
        if self.owner:
            self.chown_all(self.home)
        self.addCleanup(self._clean)

    def chown_all(self, path):
        subprocess.run(["chown", "-R", f"{self.owner.pw_uid}:{self.owner.pw_gid}", str(path)], check=True)

    def report_to(self, directory):
        """Programs with a sanitizer write what they find into files there; the test fails when it ends."""
        directory.mkdir(mode=0o700)
        for name, options in SANITIZER_OPTIONS.items():
            self.env[name] = f"{options}:log_path={directory}/{name[:-8].lower()}:log_exe_name=1"

    def _note_reports(self):
        """Looks for reports before what holds them goes away. Agents in a sandbox have an environment and a /run of
        their own: they report into their log, which is seen through the root of the sandbox's init."""
        whole = list(self.home.glob("reports/*"))
        logs = [self.home / "serve.log", *self.home.glob("agent/*.log"), *self.home.glob("state*/nearbox/**/log")]
        for pid in self.processes("sandbox-init"):
            for pattern in ("run/nearbox-agent/*.log", "tmp/nearbox-agent-*/*.log"):
                logs += pathlib.Path(f"/proc/{pid}/root").glob(pattern)
        for path in whole + logs:
            with contextlib.suppress(OSError):
                text = path.read_text(errors="replace")
                begin = 0 if path in whole else next((m.start() for m in REPORT.finditer(text)), None)
                if begin is not None:
                    info = path.stat()  # processes of one sandbox see one log
                    self.reports[(info.st_dev, info.st_ino)] = f"--- {path}\n{text[begin:][:20000]}\n"

    def _fail_for_reports(self):
        if self.reports:
            self.fail("sanitizer reports:\n" + "".join(self.reports.values()))

    def _clean(self):
        if SANITIZED:
            self._note_reports()
        for point in reversed(mounts_below(str(self.home))):
            subprocess.run([NEARBOX, "unmount", point], env=self.env, capture_output=True, timeout=60,
                           **self.as_user())
        for sig in (signal.SIGTERM, signal.SIGKILL):
            for pid in descendants_of_home(self.home):
                with contextlib.suppress(OSError):
                    os.kill(pid, sig)
            limit = time.monotonic() + 10
            while descendants_of_home(self.home) and time.monotonic() < limit:
                time.sleep(0.02)
        for point in reversed(mounts_below(str(self.home))):
            subprocess.run(["umount", "-l", point], check=False)
        if SANITIZED:
            self._note_reports()  # also what was found while programs ended
        shutil.rmtree(self.home, ignore_errors=True)

    def as_user(self):
        if not self.owner:
            return {}
        return {"user": self.owner.pw_uid, "group": self.owner.pw_gid, "extra_groups": []}

    def in_user(self, code):
        """Runs a function of this module as the test's user; raises what it raised."""
        if not self.owner:
            return code()
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(read)
            status = 1
            try:
                os.setgroups([])
                os.setgid(self.owner.pw_gid)
                os.setuid(self.owner.pw_uid)
                with os.fdopen(write, "wb") as f:
                    pickle.dump(code(), f)
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        os.close(write)
        with os.fdopen(read, "rb") as f:
            data = f.read()
        self.assertEqual(os.waitpid(pid, 0)[1], 0)
        return pickle.loads(data)

    def popen(self, *args, **kw):
        kw.setdefault("env", self.env)
        return subprocess.Popen(args, **{**self.as_user(), **kw})

    def run_cmd(self, *args, input=None, timeout=120, **kw):
        kw.setdefault("env", self.env)
        if input is None:
            kw.setdefault("stdin", subprocess.DEVNULL)
        return subprocess.run(args, input=input, capture_output=True, timeout=timeout, **{**self.as_user(), **kw})

    def nb(self, *args, code=0, **kw):
        """Runs nearbox; checks the exit code; returns the finished process (stdout, stderr are bytes)."""
        done = self.run_cmd(NEARBOX, *args, **kw)
        if code is not None and done.returncode != code:
            self.fail(f"nearbox {' '.join(map(str, args))}: exit {done.returncode}, not {code}\n"
                      f"stdout: {done.stdout[-2000:]!r}\nstderr: {done.stderr[-2000:]!r}\n{self.logs()}")
        return done

    def nb_json(self, *args, **kw):
        out = self.nb(*args, "--json", **kw).stdout
        return json.loads(out.splitlines()[-1])

    def logs(self):
        text = ""
        for log in self.home.glob("state/nearbox/*/*/log"):
            text += f"--- {log}\n{log.read_text(errors='replace')[-3000:]}\n"
        for log in self.home.glob("state/nearbox/serve/log"):
            text += f"--- {log}\n{log.read_text(errors='replace')[-3000:]}\n"
        return text

    def set_faults(self, *lines):
        new = self.faults.with_suffix(".new")
        new.write_text("".join(line + "\n" for line in lines))
        if self.owner:
            os.chown(new, self.owner.pw_uid, self.owner.pw_gid)
        new.rename(self.faults)
        time.sleep(0.05)  # programs look at the file again after at most 20 ms

    # ---- a sandbox that is a plain directory, reached over the stdio of a stand-in command

    def stand_in(self):
        """Makes `docker exec -i NAME CMD…` run CMD here, in a home of its own."""
        script = self.home / "docker"
        script.write_text('#!/bin/sh\n[ "$1 $2" = "exec -i" ] || exit 64\n'
                          'case $3 in gone*) echo "Error: No such container: $3" >&2; exit 1;; esac\n'
                          '[ -e "$HOME/stalled" ] && exec sleep 1000\nshift 3\nexec "$@"\n')
        script.chmod(0o755)
        self.env["NEARBOX_DOCKER"] = str(script)
        return "docker:box"

    def mount(self, target, mountpoint=None, *options):
        self.nb("mount", target, mountpoint or self.mnt, *options)
        return mountpoint or self.mnt

    def processes(self, *needles):
        """Pids of this test's processes whose command line holds all needles."""
        out = []
        for pid in descendants_of_home(self.home):
            with contextlib.suppress(OSError):
                with open(f"/proc/{pid}/cmdline", "rb") as f:
                    line = f.read().replace(b"\0", b" ").decode(errors="replace")
                if all(n in line for n in needles):
                    out.append(pid)
        return out

    # ---- the embedded server

    def serve(self, *options):
        """Starts `nearbox serve` and points the environment at it; returns its process."""
        # A sandbox does not see the directory of reports: they go to the log.
        env = {**self.env, **SANITIZER_OPTIONS}
        with open(self.home / "serve.log", "ab") as log:
            process = self.popen(NEARBOX, "serve", "--json", *options, stdout=subprocess.PIPE, stderr=log, env=env)
        line = process.stdout.readline()
        if not line:
            self.fail(f"nearbox serve ended: {(self.home / 'serve.log').read_text()}")
        info = json.loads(line)
        self.server = info
        self.env.update(E2B_API_URL=info["api_url"], E2B_SANDBOX_URL=info["sandbox_url"],
                        E2B_API_KEY=info["api_key"])
        return process

    def create(self, *options):
        return self.nb_json("sandbox", "create", *options)["sandbox_id"]

    def stop(self, process, sig=signal.SIGTERM):
        if SANITIZED:
            self._note_reports()
        process.send_signal(sig)
        process.wait(30)
        if process.stdout:
            process.stdout.close()


def main():
    if USER and os.getuid() != 0:
        sys.exit("NB_TEST_USER needs root")
    unittest.main(verbosity=2)
