# SPDX-License-Identifier: Apache-2.0
"""The rows of the benchmark: what is done, by whom, and what counts as time.

A row has contenders; each is sampled once a round, so that they are interleaved (A B C A B C …). A
sample is seconds, with the parts of it that are worth keeping. Every sample checks that the work was
done in full; one that is wrong ends the run.
"""
import contextlib
import os
import shlex
import shutil
import time

import trees
from peers import Http, Nearbox, Rclone, Ssh, mounts_below
from wan import BenchError

# The same for all: name, type, mode, size and mtime of every entry.
FIND_FORMAT = "%P\\t%y\\t%m\\t%s\\t%T@\\n"
FIND_SECONDS = 3600  # the longest that a listing may take: sshfs on a whole tree
READ_BYTES = 1 << 20
FIRST_BYTES = 4096


class Context:
    """What the rows share: link, peers (started when first needed), a home for mounts and state."""

    def __init__(self, wan, home, cache, options):
        self.wan, self.home, self.cache, self.options = wan, home, cache, options
        self.stack = contextlib.ExitStack()
        self._ssh = self._nearbox = self._rclone = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        """Ends what was started; removes every mount below home, whoever left it."""
        try:
            self.stack.close()
        finally:
            for point in reversed(mounts_below(self.home)):
                with contextlib.suppress(BenchError):
                    self.wan.client.run("umount", "-l", point)

    def opened(self, thing):
        self.stack.callback(thing.close)
        return thing

    @property
    def ssh(self):
        self._ssh = self._ssh or self.opened(Ssh(self.wan, self.home))
        return self._ssh

    @property
    def rclone(self):
        self._rclone = self._rclone or self.opened(Rclone(self.wan, self.ssh))
        return self._rclone

    @property
    def nearbox(self):
        self._nearbox = self._nearbox or self.opened(Nearbox(self.wan, self.home, self.options.binaries))
        return self._nearbox

    def point(self, name):
        path = os.path.join(self.home, name)
        os.makedirs(path, exist_ok=True)
        return path


def count_lines(context, command, expected, what):
    """Runs a find in the client's namespace to its end; checks the number of entries that it printed."""
    out = os.path.join(context.home, "find.out")
    with open(out, "wb") as f:
        context.wan.client.run(*command, stdout=f, timeout=FIND_SECONDS)
    lines = 0
    with open(out, "rb") as f:
        while block := f.read(1 << 20):
            lines += block.count(b"\n")
    if lines != expected:
        raise BenchError(f"{what}: {lines} entries, not {expected}")


class Contender:
    """One of those that are compared in a row."""

    name = ""   # key in the record
    label = ""  # for people

    def __init__(self, context, row):
        self.context, self.row = context, row
        self.extra = {}

    def prepare(self):
        """Before the first round, not timed."""

    def sample(self, number):
        """Does the work; returns {"seconds": …, parts…}."""
        raise NotImplementedError

    def finish(self):
        """After the last round, also after a failure."""


# ---- a tree's metadata


class Timed:
    """What a row without a word of its own has: samples are seconds."""

    key, unit = "seconds", "s"


class MountFind(Timed):
    """Mount a tree and list it with every attribute, nothing cached on the client's side."""

    name = "mount-find"
    title = "Mount a tree and `find` all of it, nothing cached here"
    reference = "ssh-find"
    goals = [("nearbox-warm", "ssh-find", 1.5, "most"), ("sshfs", "nearbox-warm", 100, "least")]
    method = ("time from the mount command until `find -printf` (type, mode, size, mtime of each entry) has listed all; a "
              "fresh mount each time; the server has the tree's metadata in memory. ssh-find: the same find on the server, "
              "through `zstd -1`, over an ssh connection that is already open. sshfs uses that open connection too.")

    def __init__(self, context):
        self.root, self.tree = trees.tree(context.cache, context.options.tree)

    def contenders(self, context):
        return [SshFind(context, self), NearboxFind(context, self, "warm"), NearboxFind(context, self, "attach"),
                NearboxFind(context, self, "first"), SshfsFind(context, self), RcloneFind(context, self)]


class SshFind(Contender):
    name, label = "ssh-find", "find \\| zstd over open ssh"

    def sample(self, _number):
        ssh = self.context.ssh
        start = time.monotonic()
        script = f"find {shlex.quote(self.row.root)} -printf {shlex.quote(FIND_FORMAT)} | zstd -1 -q"
        command = shlex.join(ssh.command(script))
        count_lines(self.context, ["sh", "-c", f"{command} | zstd -dq"], self.row.tree["entries"], self.name)
        return {"seconds": time.monotonic() - start}


class NearboxFind(Contender):
    def __init__(self, context, row, state):
        super().__init__(context, row)
        self.state = state
        self.name = f"nearbox-{state}"
        self.label = {"warm": "nearbox, daemon connected", "attach": "nearbox, agent there, no daemon",
                      "first": "nearbox, no agent in the sandbox"}[state]

    def sample(self, _number):
        nearbox, point = self.context.nearbox, self.context.point("mnt-nearbox")
        if self.state == "first" or not nearbox.sandbox:
            nearbox.new_sandbox()
        if self.state != "first":
            nearbox.release()  # a daemon that has seen the tree would know it already
            nearbox.hold()     # deploys the agent where there is none
        if self.state == "attach":
            nearbox.release()
        start = time.monotonic()
        nearbox.mount(self.row.root, point)
        mounted = time.monotonic()
        try:
            count_lines(self.context, ["find", point, "-printf", FIND_FORMAT], self.row.tree["entries"], self.name)
            end = time.monotonic()
        finally:
            nearbox.unmount(point)
        return {"seconds": end - start, "mount": mounted - start, "find": end - mounted}


class SshfsFind(Contender):
    name, label = "sshfs", "sshfs"
    own_connection = False

    def peer(self):
        return self.context.ssh

    def prepare(self):
        self.parts = None
        wanted = self.context.options.peer_subset
        if wanted:
            self.parts, directories = trees.subset(self.row.root, wanted)
            entries = sum(trees.describe(os.path.join(self.row.root, p))["entries"] for p in self.parts)
            total = self.row.tree
            # The smaller of both: in favour of the peer.
            factor = min(total["entries"] / entries, (total["directories"] + 1) / directories)
            self.entries = entries
            self.extra["scaled"] = {
                "factor": round(factor, 3), "directories": directories, "entries": entries,
                "method": f"measured on {len(self.parts)} whole subtrees evenly spread over the tree ({directories} "
                          f"directories, {entries} entries); the time of find × {factor:.2f}, the smaller of the ratios "
                          "of directories and of entries; the time of the mount added as it is"}

    def sample(self, _number):
        peer, point = self.peer(), self.context.point(f"mnt-{self.name}")
        start = time.monotonic()
        peer.mount(self.row.root, point, self.own_connection)
        mounted = time.monotonic()
        try:
            where = [os.path.join(point, p) for p in self.parts] if self.parts else [point]
            expected = self.entries if self.parts else self.row.tree["entries"]
            count_lines(self.context, ["find", *where, "-printf", FIND_FORMAT], expected, self.name)
            end = time.monotonic()
        finally:
            peer.unmount(point)
        factor = self.extra["scaled"]["factor"] if self.parts else 1
        return {"seconds": mounted - start + (end - mounted) * factor, "mount": mounted - start, "find": end - mounted}


class RcloneFind(SshfsFind):
    name, label = "rclone", "rclone mount, own connection"
    own_connection = True

    def peer(self):
        return self.context.rclone


# ---- bytes of one large file


class BigRead(Timed):
    """Read a large file from its begin to its end, cold."""

    name = "read-300m"
    title = "Read a 300 MB file from begin to end, cold"
    reference = "curl"
    goals = [("nearbox", "curl", 1 / 0.9, "most")]
    method = ("time from open until the last byte, read in pieces of 1 MiB; a file of its own in each round, so that nothing of "
              "it is cached here; the server has it in memory; it does not compress. The mounts are made before. curl: "
              "one new connection to a sendfile-based HTTP server, first byte included.")

    def __init__(self, context):
        self.root, self.names = trees.big_files(context.cache, context.options.rounds + context.options.warmup)
        self.bytes = trees.BIG_BYTES
        self.tree = {"name": "big", "files": len(self.names), "bytes_each": self.bytes}

    def contenders(self, context):
        return [Curl(context, self), NearboxRead(context, self), SshfsRead(context, self), RcloneRead(context, self),
                RsyncRead(context, self)]


def read_whole(path, source, size):
    """Reads a file as a program would; checks size and samples of content against the source."""
    start = time.monotonic()
    buffer = bytearray(READ_BYTES)
    got = 0
    with open(path, "rb", buffering=0) as f:
        while n := f.readinto(memoryview(buffer)[:FIRST_BYTES] if got == 0 else buffer):
            if got == 0:
                first = time.monotonic()
            got += n
    end = time.monotonic()
    if got != size:
        raise BenchError(f"read {got} bytes, not {size}")
    with open(path, "rb", buffering=0) as a, open(source, "rb", buffering=0) as b:
        for offset in (0, size // 3, size - 4096):
            if os.pread(a.fileno(), 4096, offset) != os.pread(b.fileno(), 4096, offset):
                raise BenchError(f"wrong bytes at {offset}")
    return {"seconds": end - start, "first_byte": first - start}


class Curl(Contender):
    name, label = "curl", "curl, one connection"

    def prepare(self):
        self.http = self.context.opened(Http(self.context.wan, self.row.root))

    def sample(self, number):
        done = self.context.wan.client.run("curl", "-sS", "--fail", "-o", "/dev/null", "-w",
                                           "%{time_total} %{time_starttransfer} %{size_download}",
                                           self.http.base + self.row.names[number])
        seconds, first, size = done.stdout.split()
        if int(size) != self.row.bytes:
            raise BenchError(f"curl got {int(size)} bytes")
        return {"seconds": float(seconds), "first_byte": float(first)}


class NearboxRead(Contender):
    name, label = "nearbox", "nearbox, daemon connected"

    def prepare(self):
        nearbox = self.context.nearbox
        if not nearbox.sandbox:
            nearbox.new_sandbox()
        self.point = self.context.point("mnt-nearbox")
        nearbox.mount(self.row.root, self.point)

    def sample(self, number):
        name = self.row.names[number]
        return read_whole(os.path.join(self.point, name), os.path.join(self.row.root, name), self.row.bytes)

    def finish(self):
        if mounts_below(self.point):
            self.context.nearbox.unmount(self.point)


class SshfsRead(Contender):
    name, label = "sshfs", "sshfs, own connection"

    def peer(self):
        return self.context.ssh

    def prepare(self):
        self.point = self.context.point(f"mnt-{self.name}")
        self.peer().mount(self.row.root, self.point, True)

    def sample(self, number):
        name = self.row.names[number]
        return read_whole(os.path.join(self.point, name), os.path.join(self.row.root, name), self.row.bytes)

    def finish(self):
        if mounts_below(self.point):
            self.peer().unmount(self.point)


class RcloneRead(SshfsRead):
    name, label = "rclone", "rclone mount, own connection"

    def peer(self):
        return self.context.rclone


class RsyncRead(Contender):
    name, label = "rsync", "rsync of the file to this disk, open ssh"

    def sample(self, number):
        target = self.context.point("rsynced")
        name = self.row.names[number]
        start = time.monotonic()
        self.context.ssh.rsync(os.path.join(self.row.root, name), target)
        seconds = time.monotonic() - start
        path = os.path.join(target, name)
        if os.path.getsize(path) != self.row.bytes:
            raise BenchError("rsync: another size")
        os.unlink(path)
        return {"seconds": seconds}


# ---- many small files


GREP_PARTS = ("rxjs", "lodash")
GREP_WORD = "nothing contains this"


class Grep(Timed):
    """Search every file of two packages: metadata known, no content here."""

    name = "grep-small"
    title = "`grep -r` over rxjs and lodash, metadata known, contents cold"
    reference = "tar"
    goals = [("nearbox", "tar", 2, "most"), ("sshfs", "nearbox", 100, "least")]
    method = ("time of `grep -rc` over both packages of a fresh mount that `find` has listed before; tar: "
              "`tar | zstd -1` of the same files over an ssh connection that is already open, unpacked and searched on the "
              "way; the server has the files in memory. grep's answer is compared with that on the server's own directory.")

    def __init__(self, context):
        root, _ = trees.tree(context.cache, "app")
        self.root = os.path.join(root, "node_modules")
        files = sum(len(f) for part in GREP_PARTS for _, _, f in os.walk(os.path.join(self.root, part)))
        self.tree = {"name": "+".join(GREP_PARTS), "files": files}

    def contenders(self, context):
        return [TarGrep(context, self), NearboxGrep(context, self), SshfsGrep(context, self), RcloneGrep(context, self),
                RsyncGrep(context, self)]


def grep(context, root, parts):
    """Runs it in the client's namespace; returns seconds and the counts of matches by file below root."""
    start = time.monotonic()
    done = context.wan.client.run("grep", "-rc", GREP_WORD, *(os.path.join(root, p) for p in parts), check=False)
    seconds = time.monotonic() - start
    return seconds, sorted(line[len(root):] for line in done.stdout.splitlines())


class TarGrep(Contender):
    name, label = "tar", "tar \\| zstd over open ssh"

    def sample(self, _number):
        ssh = self.context.ssh
        names = " ".join(GREP_PARTS)
        command = shlex.join(ssh.command(f"tar -C {shlex.quote(self.row.root)} -cf - {names} | zstd -1 -q"))
        start = time.monotonic()
        self.context.wan.client.run("sh", "-c", f"{command} | zstd -dq | tar -xOf - | grep -c '{GREP_WORD}'", check=False)
        return {"seconds": time.monotonic() - start}


class NearboxGrep(Contender):
    name, label = "nearbox", "nearbox, daemon connected"

    def sample(self, _number):
        nearbox, point = self.context.nearbox, self.context.point("mnt-nearbox")
        if not nearbox.sandbox:
            nearbox.new_sandbox()
        nearbox.release()  # the contents that a daemon has read stay in its memory
        nearbox.hold()
        nearbox.mount(self.row.root, point)
        try:
            parts = [os.path.join(point, p) for p in GREP_PARTS]
            self.context.wan.client.run("find", *parts, "-printf", FIND_FORMAT)
            seconds, found = grep(self.context, point, GREP_PARTS)
            if found != grep(self.context, self.row.root, GREP_PARTS)[1]:
                raise BenchError("grep through the mount answers other than on the server")
        finally:
            nearbox.unmount(point)
        return {"seconds": seconds}


class RsyncGrep(Contender):
    name, label = "rsync", "rsync -az to this disk over open ssh, then grep"

    def sample(self, _number):
        target = self.context.point("rsynced")
        start = time.monotonic()
        for part in GREP_PARTS:
            self.context.ssh.rsync(os.path.join(self.row.root, part), target, "-z")
        middle = time.monotonic()
        seconds, found = grep(self.context, target, GREP_PARTS)
        if found != grep(self.context, self.row.root, GREP_PARTS)[1]:
            raise BenchError("grep in the copy answers other than on the server")
        shutil.rmtree(target)
        return {"seconds": middle - start + seconds, "copy": middle - start}


class SshfsGrep(Contender):
    name, label = "sshfs", "sshfs"
    own_connection = False
    part = "rxjs/src/internal/scheduled"  # a few files: each costs round trips

    def prepare(self):
        files = sum(len(f) for _, _, f in os.walk(os.path.join(self.row.root, self.part)))
        self.factor = self.row.tree["files"] / files
        self.extra["scaled"] = {"factor": round(self.factor, 3), "entries": files,
                                "method": f"measured on the {files} files of {self.part} and scaled by the number of files"}

    def sample(self, _number):
        peer, point = self.peer(), self.context.point(f"mnt-{self.name}")
        peer.mount(self.row.root, point, self.own_connection)
        try:
            self.context.wan.client.run("find", os.path.join(point, self.part), "-printf", FIND_FORMAT)
            seconds, _ = grep(self.context, point, [self.part])
        finally:
            peer.unmount(point)
        return {"seconds": seconds * self.factor}

    def peer(self):
        return self.context.ssh


class RcloneGrep(SshfsGrep):
    name, label = "rclone", "rclone mount, own connection"
    own_connection = True

    def peer(self):
        return self.context.rclone


def remove_home(home):
    """Removes the run's directory, but never while something is mounted in it: that would reach through."""
    left = mounts_below(home)
    if left:
        raise BenchError(f"still mounted, left alone: {len(left)} mounts below {home}")
    shutil.rmtree(home, ignore_errors=True)
