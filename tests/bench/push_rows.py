# SPDX-License-Identifier: Apache-2.0
"""Rows about `nearbox sync`: the first push, a push of nothing, a large file that changed, a directory that was renamed.

Each contender makes a directory of the server's equal to one of the client's, over ssh connections that are open; that
it is equal is checked after each sample. Contenders whose program is not installed are left out, and it is said.
"""
import contextlib
import os
import random
import shlex
import shutil
import subprocess
import time

import trees
from live_rows import Limit, rtt
from peers import wait_for
from rows import FIND_FORMAT, Contender
from wan import BenchError, end_process

INSERT_FILE, INSERT_BYTES, INSERT_AT = 500_000_000, 1_000_000, 211_000_000
RENAMED_FILES, RENAMED_DIRS = 35_815, 1_200
PUSH_SECONDS = 1800  # the longest that a push may take


def installed(contenders):
    """Those whose programs are there."""
    out = []
    for contender in contenders:
        missing = [p for p in getattr(contender, "programs", ()) if not shutil.which(p)]
        if missing:
            print(f"   without {contender.name}: {', '.join(missing)} not installed", flush=True)
        else:
            out.append(contender)
    return out


def same(source, target, times=False):
    """Whether two trees hold the same; contents by their sizes, samples of them byte by byte."""
    if trees.describe(source) != trees.describe(target):
        return False
    rng = random.Random(1)
    files = [os.path.join(base, name) for base, _, names in os.walk(source) for name in names]
    for path in rng.sample(files, min(len(files), 200)):
        other = os.path.join(target, os.path.relpath(path, source))
        if os.path.islink(path):
            if os.readlink(path) != os.readlink(other):
                return False
            continue
        with open(path, "rb") as a, open(other, "rb") as b:
            if a.read(1 << 20) != b.read(1 << 20):
                return False
        if times and os.stat(path).st_mtime_ns != os.stat(other).st_mtime_ns:
            return False
    return True


class Pusher(Contender):
    """One that pushes; target() is a directory on the server's side of its own."""

    def target(self, number=0):
        return os.path.join(self.context.point(f"to-{self.row.name}-{self.name}"), str(number))

    def push(self, source, target):
        raise NotImplementedError

    def begin(self):
        """Before a target that has never been seen, not timed."""

    def timed(self, source, target):
        """Pushes; seconds and what the line carried for it."""
        before = self.context.wan.counters()
        start = time.monotonic()
        self.push(source, target)
        seconds = time.monotonic() - start
        carried = self.context.wan.stats(before)
        return {"seconds": seconds, "MB sent": carried["a_to_b"]["bytes"] / 1e6, "MB received": carried["b_to_a"]["bytes"] / 1e6}

    def drop(self, target):
        shutil.rmtree(target, ignore_errors=True)

    def finish(self):
        shutil.rmtree(self.context.point(f"to-{self.row.name}-{self.name}"), ignore_errors=True)


class Tar(Pusher):
    name, label = "tar", "tar \\| zstd -1 over open ssh"

    def push(self, source, target):
        there = f"mkdir -p {shlex.quote(target)} && zstd -dq | tar -C {shlex.quote(target)} -xf -"
        command = shlex.join(self.context.ssh.command(there))
        self.context.wan.client.run("sh", "-c", f"tar -C {shlex.quote(source)} -cf - . | zstd -1 -q | {command}", timeout=PUSH_SECONDS)


class Rsync(Pusher):
    name, label = "rsync", "rsync -az over open ssh"

    def push(self, source, target):
        self.context.wan.client.run("rsync", "-az", "--delete", "-e", f"ssh -F {self.context.ssh.path('config')}", source + "/",
                                    f"peer:{target}/", timeout=PUSH_SECONDS)


class Unison(Pusher):
    name, label = "unison", "unison over open ssh"
    programs = ("unison",)

    def begin(self):
        shutil.rmtree(self.context.point("unison"), ignore_errors=True)

    def push(self, source, target):
        env = {**os.environ, "UNISON": self.context.point("unison"), "HOME": self.context.home}
        self.context.wan.client.run("unison", source, f"ssh://peer/{target}", "-batch", "-silent", "-ui", "text", "-times", "-perms",
                                    "-1", "-servercmd", shutil.which("unison"), "-confirmbigdel=false", "-force", source, "-sshargs",
                                    f"-F {self.context.ssh.path('config')}", env=env, timeout=PUSH_SECONDS)


class Nearbox(Pusher):
    name, label = "nearbox", "nearbox sync, daemon connected"

    def prepare(self):
        nearbox = self.context.nearbox
        if not nearbox.sandbox:
            nearbox.new_sandbox()
        nearbox.hold()

    def push(self, source, target):
        # The others know no rules: all is sent here too.
        nearbox = self.context.nearbox
        nearbox.nb("sync", source, f"{nearbox.sandbox}:{target}", "--include", "*")

    def finish(self):
        self.context.nearbox.release()
        super().finish()


class Lsyncd(Pusher):
    """Watches and runs rsync; what is timed is until its target is what it shall be."""

    name, label = "lsyncd", "lsyncd (rsync -az), no delay, from the change on"
    programs = ("lsyncd", "rsync")
    process = None

    def begin(self):
        self.end()

    def start(self, source, target):
        home = self.context.point("lsyncd")
        self.log = os.path.join(home, "log")
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.log)
        config = os.path.join(home, "config.lua")
        with open(config, "w", encoding="utf-8") as f:
            f.write(f"""settings {{ logfile = "{self.log}", nodaemon = true, insist = true }}
sync {{ default.rsync, source = "{source}", target = "peer:{target}", delay = 0, delete = true,
  rsync = {{ archive = true, compress = true, rsh = "ssh -F {self.context.ssh.path('config')}" }} }}
""")
        self.process = self.context.wan.client.popen("lsyncd", config, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_for(lambda: self.logged("Startup of"), "lsyncd has made its first copy", PUSH_SECONDS)

    def logged(self, text):
        if self.process.poll() is not None:
            raise BenchError("lsyncd ended")
        try:
            with open(self.log, encoding="utf-8", errors="replace") as f:
                return any(text in line and "finished" in line for line in f)
        except FileNotFoundError:
            return False

    def end(self):
        if self.process:
            end_process(self.process)
            self.process = None

    def finish(self):
        self.end()
        super().finish()


# ---- the first push


class PushFirst:
    """A whole tree to a place where nothing is."""

    name, title = "push-first", "First push of a tree"
    reference, key, unit = "tar", "seconds", "s"
    goals = [("nearbox", "tar", 1.2, "most"), ("rsync", "nearbox", 1, "least")]
    method = ("time of the command that makes an empty directory on the server equal to the client's; the client has the tree in memory; a "
              "new target each round. tar: `tar | zstd -1 | ssh … tar x`. unison: with an empty archive, `-force`. nearbox: with "
              "`--include '*'`, since the others know no rules; its daemon is connected, the pair is new.")

    def __init__(self, context):
        self.root, self.tree = trees.tree(context.cache, context.options.tree)

    def contenders(self, context):
        kinds = (FirstTar, FirstRsync, FirstUnison, FirstNearbox)
        return installed([kind(context, self) for kind in kinds])


class First:
    def sample(self, number):
        target = self.target(number)
        self.drop(target)
        self.begin()
        found = self.timed(self.row.root, target)
        if not same(self.row.root, target):
            raise BenchError(f"{self.name}: the target is not what was pushed")
        self.drop(target)
        return found


class FirstTar(First, Tar):
    pass


class FirstRsync(First, Rsync):
    pass


class FirstUnison(First, Unison):
    pass


class FirstNearbox(First, Nearbox):
    pass


# ---- nothing changed


class PushNothing:
    """A push right after a push."""

    name, title = "push-nothing", "Push with nothing changed"
    reference, key, unit = "walk", "seconds", "s"
    goals = [("nearbox", "walk", 1.3, "most"), ("rsync", "nearbox", 5, "least")]
    method = ("time of the command when the target is current already, and was told so by the same program; the client has the tree in memory. "
              "walk: `find -printf` of type, mode, size and mtime on the client, and one round trip added.")

    def __init__(self, context):
        self.root, self.tree = trees.tree(context.cache, context.options.tree)

    def contenders(self, context):
        kinds = (Walk, NothingRsync, NothingUnison, NothingNearbox)
        return installed([kind(context, self) for kind in kinds])


class Walk(Contender):
    name, label = "walk", "stat walk here + 1 RTT"

    def sample(self, _number):
        one = rtt(self.context)
        out = os.path.join(self.context.home, "walk.out")
        with open(out, "wb") as f:
            start = time.monotonic()
            self.context.wan.client.run("find", self.row.root, "-printf", FIND_FORMAT, stdout=f)
            seconds = time.monotonic() - start
        return {"seconds": seconds + one, "walk": seconds}


class Nothing:
    def prepare(self):
        super().prepare()
        self.drop(self.target())
        self.begin()
        for _ in range(2):  # the second one settles what the first left to be looked at again
            self.push(self.row.root, self.target())
        if not same(self.row.root, self.target()):
            raise BenchError(f"{self.name}: the target is not what was pushed")

    def sample(self, _number):
        return self.timed(self.row.root, self.target())


class NothingRsync(Nothing, Rsync):
    pass


class NothingUnison(Nothing, Unison):
    pass


class NothingNearbox(Nothing, Nearbox):
    pass


# ---- a large file that changed


class PushInsert:
    """One megabyte put into the middle of a large file."""

    name, title = "push-insert", "1 MB inserted into a 500 MB file"
    reference, key, unit = "rsync", "seconds", "s"
    goals = [("nearbox", "rsync", 1, "most")]
    method = (f"a file of {INSERT_FILE // 1_000_000} MB that does not compress is current on the server; then 1 MB of random bytes is put in at "
              "211 MB, another one each round, and the directory pushed; time and bytes of that push. lsyncd: from the end of the write until "
              "the server's file has its new size and the bytes around the change.")

    def __init__(self, context):
        self.root = context.point("insert")
        self.tree = {"name": "insert", "files": 1, "bytes_each": INSERT_FILE}
        self.path = os.path.join(self.root, "large.bin")
        self.reset()

    def reset(self):
        rng = random.Random(7)
        with open(self.path, "wb") as f:
            for _ in range(INSERT_FILE // 1_000_000):
                f.write(rng.randbytes(1_000_000))

    def insert(self, number):
        """Beside, then renamed: as an editor saves."""
        block = random.Random(1000 + number).randbytes(INSERT_BYTES)
        with open(self.path, "rb") as old, open(self.path + ".new", "wb") as new:
            shutil.copyfileobj(_Part(old, INSERT_AT), new, 1 << 20)
            new.write(block)
            shutil.copyfileobj(old, new, 1 << 20)
        os.rename(self.path + ".new", self.path)
        return block

    def contenders(self, context):
        kinds = (InsertRsync, InsertUnison, InsertLsyncd, InsertNearbox)
        return installed([kind(context, self) for kind in kinds])


class _Part:
    """The next bytes of a file, as a file."""

    def __init__(self, f, left):
        self.f, self.left = f, left

    def read(self, size):
        data = self.f.read(min(size, self.left))
        self.left -= len(data)
        return data


class Insert:
    def prepare(self):
        super().prepare()
        self.drop(self.target())
        self.begin()

    def settle(self):
        """The server has what is there now; not timed."""
        self.push(self.row.root, self.target())

    def change(self, number):
        return self.row.insert(number)

    def sample(self, number):
        self.settle()
        self.change(number)
        found = self.timed(self.row.root, self.target())
        self.check()
        return found

    def check(self):
        there = os.path.join(self.target(), os.path.basename(self.row.path))
        with open(self.row.path, "rb") as a, open(there, "rb") as b:
            while True:
                one, other = a.read(1 << 22), b.read(1 << 22)
                if one != other:
                    raise BenchError(f"{self.name}: other bytes on the server")
                if not one:
                    return


class InsertRsync(Insert, Rsync):
    pass


class InsertUnison(Insert, Unison):
    pass


class InsertNearbox(Insert, Nearbox):
    pass


class InsertLsyncd(Insert, Lsyncd):
    def settle(self):
        self.end()
        self.start(self.row.root, self.target())

    def push(self, source, target):
        there = os.path.join(target, os.path.basename(self.row.path))
        size = os.path.getsize(self.row.path)
        with open(self.row.path, "rb") as f:
            block = os.pread(f.fileno(), 4096, INSERT_AT)

        def current():
            with contextlib.suppress(FileNotFoundError), open(there, "rb") as f:
                return os.fstat(f.fileno()).st_size == size and os.pread(f.fileno(), 4096, INSERT_AT) == block
            return False
        wait_for(current, "lsyncd has copied the file", PUSH_SECONDS)


# ---- a directory that was renamed


class PushRename:
    """A directory with tens of thousands of files gets another name."""

    name, title = "push-rename", f"A directory of {RENAMED_FILES:,} files renamed"
    reference, key, unit = "limit", "seconds", "s"
    goals = [("nearbox", "limit", 1, "most"), ("nearbox", "rsync", 1, "most")]
    method = (f"{RENAMED_FILES:,} files in {RENAMED_DIRS:,} directories are current on the server; then the directory that holds them is renamed, "
              "and its parent pushed. The goal is 1 s and 0.2 MB sent.")

    def __init__(self, context):
        self.root = context.point("rename")
        self.tree = {"name": "rename", "files": RENAMED_FILES}
        rng = random.Random(11)
        block = rng.randbytes(65_536)
        for i in range(RENAMED_DIRS):
            os.makedirs(os.path.join(self.root, "named-0", f"d{i % 40}", f"p{i}"), exist_ok=True)
        for i in range(RENAMED_FILES):
            at = rng.randrange(60_000)
            path = os.path.join(self.root, "named-0", f"d{i % RENAMED_DIRS % 40}", f"p{i % RENAMED_DIRS}", f"f{i}.js")
            with open(path, "wb") as f:
                f.write(b"%d\n" % i + block[at:at + rng.randrange(200, 3000)])
        self.renamed = 0

    def rename(self):
        old = os.path.join(self.root, f"named-{self.renamed}")
        self.renamed += 1
        os.rename(old, os.path.join(self.root, f"named-{self.renamed}"))

    def contenders(self, context):
        kinds = (RenameRsync, RenameUnison, RenameLsyncd, RenameNearbox)
        return [Limit(context, self, "1 s", 1.0), *installed([kind(context, self) for kind in kinds])]


class Rename(Insert):
    def change(self, _number):
        self.row.rename()

    def check(self):
        if not same(self.row.root, self.target()):
            raise BenchError(f"{self.name}: the target is not what was pushed")


class RenameRsync(Rename, Rsync):
    pass


class RenameUnison(Rename, Unison):
    pass


class RenameNearbox(Rename, Nearbox):
    pass


class RenameLsyncd(Rename, Lsyncd):
    settle = InsertLsyncd.settle

    def push(self, source, target):
        new = f"named-{self.row.renamed}"
        last = os.path.join(target, new, f"d{(RENAMED_DIRS - 1) % 40}", f"p{RENAMED_DIRS - 1}")
        wait_for(lambda: os.listdir(target) == [new] and os.path.isdir(last) and
                 sum(len(f) for _, _, f in os.walk(os.path.join(target, new))) == RENAMED_FILES,
                 "lsyncd has copied the directory", PUSH_SECONDS)


PUSH_ROWS = (PushFirst, PushNothing, PushInsert, PushRename)
