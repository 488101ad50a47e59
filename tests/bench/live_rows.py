# SPDX-License-Identifier: Apache-2.0
"""Rows about a live tree: how soon changes are seen, what watching costs, what is paid when nothing happens.

Where a goal is a figure and not a peer, the contender `limit` is that figure, from the measured link.
"""
import contextlib
import json
import os
import random
import statistics
import subprocess
import threading
import time

import trees
from peers import Nearbox, mounts_below, wait_for
from rows import FIND_FORMAT, Contender, Curl, NearboxRead, count_lines, read_whole
from wan import BenchError


class Limit(Contender):
    """The goal itself, drawn beside what was reached."""

    name = "limit"

    def __init__(self, context, row, label, value):
        super().__init__(context, row)
        self.label, self.value = f"goal: {label}", value

    def sample(self, _number):
        return {self.row.key: self.value}


def rtt(context):
    """Seconds of a round trip, as measured now."""
    return statistics.median(context.wan.ping(5)) / 1000


def quantile(values, share):
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


# ---- processes


def agents(context):
    """Pids of the agents on the server's side."""
    found = []
    for pid in context.wan.server.processes():
        with contextlib.suppress(OSError):
            if "nearbox-agent" in os.path.basename(os.readlink(f"/proc/{pid}/exe")):
                found.append(pid)
    return found


def cpu_seconds(pids):
    """CPU time of processes so far, to the nanosecond; of threads that are gone too."""
    # The clock of a process, as clock_getcpuclockid(3) makes its number.
    return sum(time.clock_gettime((~pid << 3) | 2) for pid in pids)


def wakeups(pids):
    total = 0
    for pid in pids:
        for task in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(OSError), open(f"/proc/{pid}/task/{task}/status", encoding="ascii", errors="replace") as f:
                total += sum(int(line.split()[1]) for line in f if line.startswith("voluntary_ctxt_switches"))
    return total


def memory(pids):
    """Bytes that are these processes' own: anonymous and dirty pages, not the program's text."""
    total = 0
    for pid in pids:
        with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as f:
            total += sum(int(line.split()[1]) * 1024 for line in f if line.startswith("Pss:"))
    return total


class Live(Contender):
    """nearbox with a daemon that is connected and a mount of the row's directory, from prepare() to finish()."""

    name, label = "nearbox", "nearbox"

    def prepare(self):
        nearbox = self.context.nearbox
        if not nearbox.sandbox:
            nearbox.new_sandbox()
        nearbox.release()
        nearbox.hold()
        self.point = self.context.point("mnt-live")
        nearbox.mount(self.row.root, self.point)
        count_lines(self.context, ["find", self.point], self.row.tree.get("entries"), self.name)

    def finish(self):
        if mounts_below(self.context.point("mnt-live")):
            self.context.nearbox.unmount(self.context.point("mnt-live"))
        self.context.nearbox.release()


# ---- a command


class ExecTrue:
    name, title = "exec-true", "`nearbox exec SANDBOX -- true`, daemon connected"
    reference, key, unit = "rtt", "seconds", "s"
    goals = [("nearbox", "rtt", 1.5, "most")]
    method = ("median of 11 commands a round, from the start of the program to its end, both barriers included, as a user whose login shell "
              "reads no files of his own; ssh: `true` over an open connection; rtt: ICMP echo.")

    def __init__(self, context):
        self.root = os.path.join(context.home, "exec-root")
        os.makedirs(self.root, exist_ok=True)
        self.tree = {"name": "empty", "files": 0, "entries": 1}

    def contenders(self, context):
        return [Ping(context, self), SshTrue(context, self), NearboxTrue(context, self)]


def times_of(work, count=11):
    found = []
    for _ in range(count):
        start = time.monotonic()
        work()
        found.append(time.monotonic() - start)
    return {"seconds": statistics.median(found), "slowest": max(found)}


class Ping(Contender):
    name, label = "rtt", "one round trip"

    def sample(self, _number):
        found = [t / 1000 for t in self.context.wan.ping(11)]
        return {"seconds": statistics.median(found), "slowest": max(found)}


class SshTrue(Contender):
    name, label = "ssh", "ssh, open connection"

    def sample(self, _number):
        return times_of(lambda: self.context.wan.client.run(*self.context.ssh.command("true")))


class NearboxTrue(Live):
    label = "nearbox, daemon connected"

    def sample(self, _number):
        nearbox = self.context.nearbox
        return times_of(lambda: nearbox.nb("exec", "-u", "nobody", nearbox.sandbox, "--", "true"))


# ---- walks over what is known


class Warm:
    """A walk that has been done before, on the mount and on the local disk."""

    reference, key, unit = "native", "seconds", "s"
    goals = [("nearbox", "native", 1.5, "most")]
    command = None

    def __init__(self, context):
        self.root, self.tree = trees.tree(context.cache, "app")

    def contenders(self, context):
        return [NativeWalk(context, self), NearboxWalk(context, self)]


class WarmFind(Warm):
    name, title = "warm-find", "`find -printf` of a tree, done before"
    method = "type, mode, size and mtime of every entry; the third run and later ones."

    @staticmethod
    def command(root):
        return ["find", root, "-printf", FIND_FORMAT]


class WarmLs(Warm):
    name, title = "warm-ls", "`ls -lR` of a tree, done before"
    method = "the third run and later ones; `ls -lRn --color=never`."

    @staticmethod
    def command(root):
        return ["ls", "-lRn", "--color=never", root]


class WarmGit(Warm):
    name, title = "warm-git", "`git status` in a repository with the tree, done before"
    method = ("a repository of the packages typescript, rxjs, lodash, webpack and next, all files committed; `git --no-optional-locks "
              "status --porcelain`, which has to look at each file and each directory; the third run and later ones. The index was "
              "written on the server's own directory and brought up to date through each contender's once.")

    def __init__(self, context):
        self.root, self.tree = trees.tree(context.cache, "repository")

    @staticmethod
    def command(root):
        return ["git", "-c", "safe.directory=*", "--no-optional-locks", "-C", root, "status", "--porcelain"]


def timed_walk(context, row, root):
    start = time.monotonic()
    context.wan.client.run(*row.command(root), stdout=subprocess.DEVNULL)
    return {"seconds": time.monotonic() - start}


class NativeWalk(Contender):
    name, label = "native", "the server's own disk (ext4)"

    def prepare(self):
        for _ in range(2):
            timed_walk(self.context, self.row, self.row.root)

    def sample(self, _number):
        return timed_walk(self.context, self.row, self.row.root)


class NearboxWalk(Live):
    def prepare(self):
        super().prepare()
        for _ in range(2):
            timed_walk(self.context, self.row, self.point)

    def sample(self, _number):
        return timed_walk(self.context, self.row, self.point)


# ---- how soon a change is seen


class Visible:
    name, title = "visible", "A file written in the sandbox, until the mount shows it"
    reference, key, unit = "limit", "seconds", "s"
    goals = [("nearbox", "limit", 1, "most")]
    EVENTS = 100
    method = (f"99th percentile of {EVENTS} files a round, in a mount of the tree `app`: from the end of write(2) and close(2) on the server's "
              "own directory until stat(2) through the mount shows the file with its size, asked every 0.2 ms.")

    def __init__(self, context):
        self.app, self.tree = trees.tree(context.cache, "app")
        self.root = self.app
        self.place = os.path.join(self.app, "node_modules", ".bench-visible")

    def contenders(self, context):
        return [Limit(context, self, "RTT/2 + 20 ms", rtt(context) / 2 + 0.020), NearboxVisible(context, self)]


class NearboxVisible(Live):
    def prepare(self):
        super().prepare()
        os.makedirs(self.row.place, exist_ok=True)

    def sample(self, number):
        found = []
        shown = os.path.join(self.point, os.path.relpath(self.row.place, self.row.root))
        wait_for(lambda: os.path.isdir(shown), "the directory is seen")
        for i in range(self.row.EVENTS):
            name = f"f{number}-{i}"
            with contextlib.suppress(FileNotFoundError):
                os.stat(os.path.join(shown, name))
            with open(os.path.join(self.row.place, name), "wb") as f:
                f.write(b"x" * 100)
            start = time.monotonic()
            found.append(self.seen(os.path.join(shown, name), start))
        return {"seconds": quantile(found, 0.99), "median": statistics.median(found), "slowest": max(found)}

    @staticmethod
    def seen(path, start):
        while time.monotonic() < start + 10:
            with contextlib.suppress(FileNotFoundError):
                if os.stat(path).st_size == 100:
                    return time.monotonic() - start
            time.sleep(0.0002)  # the pause between two looks; its length is said in the method
        raise BenchError("a change is not seen within 10 s")

    def finish(self):
        super().finish()
        for name in os.listdir(self.row.place):
            os.unlink(os.path.join(self.row.place, name))
        os.rmdir(self.row.place)


# ---- memory


class Memory:
    """The whole of a million entries in memory."""

    name, title = "memory-1m", "1,000,000 entries mounted: time until all is known here"
    reference, key, unit = "limit", "seconds", "s"
    goals = [("nearbox", "limit", 1, "most")]
    method = ("time from the mount command until `nearbox status` says that the tree is loaded; beside it, the time of the `find -printf '%s'` that "
              "then lists every entry, and after that memory (PSS) of daemon and agent and the growth of the kernel's slabs that can be "
              "reclaimed. A fresh daemon each time. The goal for each process is 300 MB.")

    def __init__(self, context):
        self.root, self.tree = trees.tree(context.cache, "synthetic-1m")

    def contenders(self, context):
        return [Limit(context, self, "10 s", 10.0), NearboxMemory(context, self)]


def slab_bytes():
    with open("/proc/meminfo", encoding="ascii") as f:
        return next(int(line.split()[1]) * 1024 for line in f if line.startswith("SReclaimable:"))


class NearboxMemory(Live):
    def prepare(self):
        nearbox = self.context.nearbox
        if not nearbox.sandbox:
            nearbox.new_sandbox()

    def sample(self, _number):
        nearbox, self.point = self.context.nearbox, self.context.point("mnt-live")
        nearbox.release()
        nearbox.hold()
        agent_before = memory(agents(self.context))
        slabs = slab_bytes()
        start = time.monotonic()
        nearbox.mount(self.row.root, self.point)
        wait_for(self.loaded, "the tree is loaded", 120)
        seconds = time.monotonic() - start
        start = time.monotonic()
        count_lines(self.context, ["find", self.point, "-printf", "%s\\n"], self.row.tree["entries"], self.name)
        found = {"seconds": seconds, "find s": time.monotonic() - start, "daemon MB": memory(nearbox.daemons()) / 1e6, "agent MB": memory(agents(self.context)) / 1e6,
                 "agent before MB": agent_before / 1e6, "kernel MB": (slab_bytes() - slabs) / 1e6}
        nearbox.unmount(self.point)
        return found

    def loaded(self):
        said = json.loads(self.context.nearbox.nb("status", "--json").stdout)
        return all(not mount["loading"] for daemon in said["daemons"] for mount in daemon["mounts"])


# ---- nothing happens


class Idle:
    name, title = "idle", "CPU time while nothing happens"
    reference, key, unit = "limit", "percent", "%"
    goals = [("nearbox", "limit", 1, "most"), ("nearbox-agent", "limit", 1, "most")]
    SECONDS = 30
    method = f"CPU time of all threads over {SECONDS} s with the tree `app` mounted and watched, in percent of one core; wake-ups of all threads."

    def __init__(self, context):
        self.root, self.tree = trees.tree(context.cache, "app")

    def contenders(self, context):
        daemon = NearboxIdle(context, self)
        return [Limit(context, self, "0.1 %", 0.1), daemon, AgentIdle(context, self, daemon)]


class NearboxIdle(Live):
    label = "nearbox daemon"

    def sample(self, _number):
        both = {"daemon": self.context.nearbox.daemons(), "agent": agents(self.context)}
        wait_for(lambda: self.quiet(both), "both are quiet", 60)
        cpu = {k: cpu_seconds(v) for k, v in both.items()}
        woken = {k: wakeups(v) for k, v in both.items()}
        time.sleep(self.row.SECONDS)  # the time that is measured
        self.found = {k: {"percent": 100 * (cpu_seconds(v) - cpu[k]) / self.row.SECONDS,
                          "wake-ups a second": (wakeups(v) - woken[k]) / self.row.SECONDS} for k, v in both.items()}
        return self.found["daemon"]

    @staticmethod
    def quiet(both):
        before = cpu_seconds(both["daemon"] + both["agent"])
        time.sleep(0.5)
        return cpu_seconds(both["daemon"] + both["agent"]) - before < 0.005


class AgentIdle(Contender):
    name, label = "nearbox-agent", "nearbox-agent"

    def __init__(self, context, row, daemon):
        super().__init__(context, row)
        self.daemon = daemon

    def sample(self, _number):
        return self.daemon.found["agent"]  # of the same seconds


# ---- a build beside


class Watched:
    name, title = "watched-build", "`npm install` in the sandbox, watched by a mount or not"
    reference, key, unit = "unwatched", "seconds", "s"
    goals = [("nearbox", "unwatched", 1.05, "most"), ("nearbox-cpu", "build-cpu", 0.03, "most")]
    method = ("`npm install --offline` of rxjs, lodash, typescript, webpack and eslint into an empty directory, as a plain process on the server's side; "
              "watched: the directory is mounted, loaded and watched meanwhile; unwatched: no agent runs. cpu: of the build itself, and "
              "of the agent from the build's begin until the mount shows its result.")

    def __init__(self, context):
        self.cache = trees.npm_cache(context.cache)
        self.root = os.path.join(context.home, "watched")
        os.makedirs(self.root, exist_ok=True)
        self.tree = {"name": "npm", "files": 0}

    def contenders(self, context):
        build, cpu = NearboxBuild(context, self), {}
        build.cpu = cpu
        return [PlainBuild(context, self), build, Found(context, self, "build-cpu", "CPU of the build", cpu, "build"),
                Found(context, self, "nearbox-cpu", "CPU of the agent", cpu, "agent")]


def clear(row, name):
    root = os.path.join(row.root, name)
    subprocess.run(["rm", "-rf", root], check=True)
    return root


def install(context, row, name):
    """Returns seconds and CPU seconds of the install; npm itself says that it is complete."""
    root = clear(row, name)
    os.mkdir(root)
    trees.write_npm_project(root)
    before = os.times()
    start = time.monotonic()
    context.wan.server.run("npm", "install", "--offline", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error",
                           f"--cache={row.cache}", cwd=root)
    seconds = time.monotonic() - start
    after = os.times()
    return root, seconds, after.children_user + after.children_system - before.children_user - before.children_system


class PlainBuild(Contender):
    name, label = "unwatched", "not watched"

    def sample(self, _number):
        self.context.nearbox.release()
        if self.context.nearbox.sandbox:
            self.context.nearbox.end_sandbox()
        _, seconds, _ = install(self.context, self.row, "tree")
        return {"seconds": seconds}


class NearboxBuild(Contender):
    name, label = "nearbox", "mounted and watched"

    def sample(self, _number):
        nearbox, point = self.context.nearbox, self.context.point("mnt-live")
        nearbox.new_sandbox()
        nearbox.hold()
        clear(self.row, "tree")  # that of the round before is no part of the build
        nearbox.mount(self.row.root, point)
        try:
            count_lines(self.context, ["find", point, "-maxdepth", "0"], 1, self.name)
            pids = agents(self.context)
            before = cpu_seconds(pids)
            root, seconds, build = install(self.context, self.row, "tree")
            nearbox.nb("flush")
            agent = cpu_seconds(pids) - before
            entries = trees.describe(root)["entries"]
            count_lines(self.context, ["find", os.path.join(point, "tree")], entries, self.name)
        finally:
            nearbox.unmount(point)
        self.cpu.update(build=build, agent=agent)
        return {"seconds": seconds}


class Found(Contender):
    """What another contender of the same round measured beside."""

    def __init__(self, context, row, name, label, found, key):
        super().__init__(context, row)
        self.name, self.label, self.found, self.of = name, label, found, key

    def sample(self, _number):
        return {self.row.key: self.found[self.of]}


# ---- small beside large


class Busy:
    name, title = "busy", "4 KiB read from a cold file while large files are read and written beside it"
    reference, key, unit = "limit", "seconds", "s"
    goals = [("nearbox", "limit", 1, "most")]
    READS = 100
    method = (f"99th percentile of {READS} files of 4 KiB a round, each in a directory of its own, open, read and close, while one program reads "
              "files of 300 MB through the same mount and another one writes such a file, for as long as it takes; idle: the same "
              "reads with nothing beside.")

    def __init__(self, context):
        self.root, self.tree = trees.tree(context.cache, "cold")
        self.big = trees.big_files(context.cache, 6)
        rate = context.wan.asked["rate_mbit"]
        self.extra_ms = 25 if rate >= 1000 else 60

    def contenders(self, context):
        limit = rtt(context) + self.extra_ms / 1000
        return [Limit(context, self, f"RTT + {self.extra_ms} ms", limit), NearboxBusy(context, self, False), NearboxBusy(context, self, True)]


class NearboxBusy(Contender):
    def __init__(self, context, row, busy):
        super().__init__(context, row)
        self.busy = busy
        self.name = "nearbox" if busy else "nearbox-idle"
        self.label = "nearbox, link full both ways" if busy else "nearbox, nothing beside"

    def sample(self, number):
        nearbox = self.context.nearbox
        if not nearbox.sandbox:
            nearbox.new_sandbox()
        nearbox.release()
        nearbox.hold()
        point, large = self.context.point("mnt-live"), self.context.point("mnt-big")
        nearbox.mount(self.row.root, point)
        nearbox.mount(self.row.big[0], large)
        scratch = os.path.join(self.row.big[0], "written.tmp")
        try:
            names = sorted(os.listdir(point))
            random.Random(number).shuffle(names)
            stop, moved = threading.Event(), {"read": 0, "written": 0}
            beside = [threading.Thread(target=self.read_beside, args=(large, stop, moved)),
                      threading.Thread(target=self.write_beside, args=(large, stop, moved))] if self.busy else []
            for thread in beside:
                thread.start()
            try:
                if self.busy:
                    wait_for(lambda: moved["read"] > 20e6 and moved["written"] > 20e6, "both ways are full")
                found = [self.one(os.path.join(point, name)) for name in names[:self.row.READS]]
            finally:
                stop.set()
                for thread in beside:
                    thread.join()
        finally:
            nearbox.unmount(point)
            nearbox.unmount(large)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(scratch)
        out = {"seconds": quantile(found, 0.99), "median": statistics.median(found), "slowest": max(found)}
        return {**out, **{f"MB {k}": v / 1e6 for k, v in moved.items()}} if self.busy else out

    @staticmethod
    def one(directory):
        start = time.monotonic()
        with open(os.path.join(directory, "file"), "rb", buffering=0) as f:
            if len(f.read(4096)) != 4096:
                raise BenchError("a short read")
        return time.monotonic() - start

    def read_beside(self, root, stop, moved):
        for name in self.row.big[1]:
            with open(os.path.join(root, name), "rb", buffering=0) as f:
                while not stop.is_set() and (got := len(f.read(1 << 20))):
                    moved["read"] += got

    @staticmethod
    def write_beside(root, stop, moved):
        block = random.Random(1).randbytes(1 << 20)
        with open(os.path.join(root, "written.tmp"), "wb", buffering=0) as f:
            while not stop.is_set():
                moved["written"] += f.write(block)
                if moved["written"] >= 2e9:
                    f.seek(0)


# ---- what it costs


class CpuBytes:
    name, title = "cpu-gb", "CPU time for a gigabyte read through the mount"
    reference, key, unit = "limit", "seconds a GB", "s/GB"
    goals = [("nearbox", "limit", 1, "most")]
    method = "CPU time of daemon and agent over a cold read of 300 MB, for a gigabyte of it."

    def __init__(self, context):
        self.root, self.names = trees.big_files(context.cache, context.options.rounds + context.options.warmup)
        self.tree = {"name": "big", "files": len(self.names), "bytes_each": trees.BIG_BYTES, "entries": len(self.names) + 1}

    def contenders(self, context):
        return [Limit(context, self, "3 s a GB", 3.0), NearboxCpuBytes(context, self)]


class NearboxCpuBytes(Live):
    label = "nearbox, daemon and agent"

    def prepare(self):
        self.row.tree["entries"] = len(os.listdir(self.row.root)) + 1
        super().prepare()

    def sample(self, number):
        pids = {"daemon": self.context.nearbox.daemons(), "agent": agents(self.context)}
        before = {k: cpu_seconds(v) for k, v in pids.items()}
        name = self.row.names[number]
        read_whole(os.path.join(self.point, name), os.path.join(self.row.root, name), trees.BIG_BYTES)
        used = {k: (cpu_seconds(v) - before[k]) / (trees.BIG_BYTES / 1e9) for k, v in pids.items()}
        return {self.row.key: sum(used.values()), **used}


class CpuEntries:
    name, title = "cpu-entry", "CPU time for an entry of metadata, mount and `find`"
    reference, key, unit = "limit", "microseconds", "µs"
    goals = [("nearbox", "limit", 1, "most")]
    method = "CPU time of daemon and agent from the mount command until `find -printf` has listed all of a tree, by entry; the daemon is connected before."

    def __init__(self, context):
        self.root, self.tree = trees.tree(context.cache, "app")

    def contenders(self, context):
        return [Limit(context, self, "25 µs", 25.0), NearboxCpuEntries(context, self)]


class NearboxCpuEntries(Live):
    label = "nearbox, daemon and agent"

    def prepare(self):
        if not self.context.nearbox.sandbox:
            self.context.nearbox.new_sandbox()

    def sample(self, _number):
        nearbox, self.point = self.context.nearbox, self.context.point("mnt-live")
        nearbox.release()
        nearbox.hold()
        pids = {"daemon": nearbox.daemons(), "agent": agents(self.context)}
        before = {k: cpu_seconds(v) for k, v in pids.items()}
        nearbox.mount(self.row.root, self.point)
        count_lines(self.context, ["find", self.point, "-printf", FIND_FORMAT], self.row.tree["entries"], self.name)
        used = {k: (cpu_seconds(v) - before[k]) * 1e6 / self.row.tree["entries"] for k, v in pids.items()}
        nearbox.unmount(self.point)
        return {self.row.key: sum(used.values()), **used}


# ---- the disk of this machine


class HostDisk:
    name, title = "host-disk", "Bytes on this machine's disk after a build in the sandbox and reads through the mount"
    reference, key, unit = "limit", "bytes", "B"
    goals = [("nearbox", "limit", 1, "most")]
    method = ("growth (statvfs) of a file system that holds project, HOME, TMPDIR, mountpoint and nearbox's state, from before the mount until after `npm install` in the "
              "sandbox, `ls -lR` and `grep -r` of all through the mount; the goal is what an idle journal may take.")

    def __init__(self, context):
        self.cache = trees.npm_cache(context.cache)
        self.root = os.path.join(context.home, "disk-tree")
        os.makedirs(self.root, exist_ok=True)
        self.tree = {"name": "npm", "files": 0}

    def contenders(self, context):
        return [Limit(context, self, "1 MB", 1e6), NearboxDisk(context, self)]


class NearboxDisk(Contender):
    name, label = "nearbox", "nearbox"

    def prepare(self):
        image, self.disk = os.path.join(self.context.home, "disk.img"), self.context.point("disk")
        subprocess.run(["truncate", "-s", "256M", image], check=True)
        subprocess.run(["mkfs.ext4", "-q", image], check=True)
        subprocess.run(["mount", "-o", "loop", image, self.disk], check=True)
        self.nearbox = Nearbox(self.context.wan, self.disk, self.context.options.binaries,
                               data=self.context.point("disk-data"))
        self.nearbox.env["TMPDIR"] = self.nearbox.home
        self.nearbox.new_sandbox()

    def used(self):
        os.sync()
        stat = os.statvfs(self.disk)
        return (stat.f_blocks - stat.f_bfree) * stat.f_frsize

    def sample(self, _number):
        point = os.path.join(self.disk, "mnt")
        os.makedirs(point, exist_ok=True)
        subprocess.run(["rm", "-rf", os.path.join(self.row.root, "tree")], check=True)
        self.nearbox.release()
        before = self.used()
        self.nearbox.mount(self.row.root, point)
        try:
            root, _, _ = install(self.context, self.row, "tree")
            self.nearbox.nb("flush")
            shown = os.path.join(point, "tree")
            self.context.wan.client.run("ls", "-lR", shown, stdout=subprocess.DEVNULL)
            self.context.wan.client.run("grep", "-rc", "nothing contains this", shown, check=False, stdout=subprocess.DEVNULL)
            grown = self.used() - before
        finally:
            self.nearbox.unmount(point)
        kept = trees.describe(root)
        return {self.row.key: max(grown, 0), "files read": kept["files"], "bytes in the sandbox": kept["bytes"]}

    def finish(self):
        if hasattr(self, "nearbox"):
            self.nearbox.close()
        if mounts_below(self.disk):
            subprocess.run(["umount", self.disk], check=True)


# ---- two gigabytes


class HugeRead:
    name, title = "read-2g", "Read a 2 GB file from begin to end, cold"
    reference, key, unit = "curl", "seconds", "s"
    goals = [("nearbox", "curl", 1 / 0.9, "most")]
    method = ("as `read-300m`, with one file of 2 GB and a fresh daemon each round (its memory cache holds 256 MiB). Without sshfs, which takes "
              "minutes a sample.")

    def __init__(self, context):
        self.root, name = trees.huge_file(context.cache)
        self.names = [name] * (context.options.rounds + context.options.warmup)
        self.bytes = trees.HUGE_BYTES
        self.tree = {"name": "huge", "files": 1, "bytes_each": self.bytes}

    def contenders(self, context):
        return [Curl(context, self), FreshRead(context, self)]


class FreshRead(NearboxRead):
    def prepare(self):
        pass

    def sample(self, number):
        nearbox = self.context.nearbox
        if not nearbox.sandbox:
            nearbox.new_sandbox()
        nearbox.release()
        nearbox.hold()
        self.point = self.context.point("mnt-nearbox")
        nearbox.mount(self.row.root, self.point)
        try:
            return super().sample(number)
        finally:
            nearbox.unmount(self.point)

    def finish(self):
        self.context.nearbox.release()


LIVE_ROWS = (ExecTrue, WarmFind, WarmLs, WarmGit, Visible, HostDisk, Memory, Idle, Watched, Busy, CpuBytes, CpuEntries, HugeRead)
