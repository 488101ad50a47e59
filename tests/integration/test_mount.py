# SPDX-License-Identifier: Apache-2.0
"""Mounts on a plain directory: the same script of system calls on the mount and on a native directory."""
import errno
import mmap
import os
import random
import stat
import subprocess

import nbtest
from nbtest import wait_for


def tree_of(path):
    """Everything a tree shows: names, types, modes, sizes, links, bytes."""
    out = {}
    for base, dirs, files in os.walk(path):
        for name in dirs + files:
            full = os.path.join(base, name)
            st = os.lstat(full)
            key = os.path.relpath(full, path)
            row = [stat.S_IFMT(st.st_mode), stat.S_IMODE(st.st_mode)]
            if stat.S_ISLNK(st.st_mode):
                row = [stat.S_IFLNK, os.readlink(full)]
            elif stat.S_ISREG(st.st_mode):
                with open(full, "rb") as f:
                    row += [st.st_size, st.st_nlink, f.read()]
            out[key] = row
        dirs[:] = [d for d in dirs if not os.path.islink(os.path.join(base, d))]
    return out


class Script:
    """Runs system calls below one directory and writes down what each answered."""

    def __init__(self, root):
        self.root = root
        self.out = []

    def do(self, what, call, *paths, **kw):
        full = [os.path.join(self.root, p) if isinstance(p, str) else p for p in paths]
        try:
            value = call(*full, **kw)
        except OSError as e:
            value = errno.errorcode[e.errno]
        self.out.append((what, value))
        return value


def write_file(path, data=b"", mode="wb"):
    with open(path, mode) as f:
        f.write(data)


def pwrite(path, data, offset):
    fd = os.open(path, os.O_RDWR)
    try:
        return os.pwrite(fd, data, offset)
    finally:
        os.close(fd)


def with_fd(path, call):
    fd = os.open(path, os.O_RDWR)
    try:
        return call(fd)
    finally:
        os.close(fd)


def read_file(path):
    with open(path, "rb") as f:
        return f.read()


def facts(path):
    st = os.lstat(path)
    return stat.S_IFMT(st.st_mode), stat.S_IMODE(st.st_mode), st.st_nlink if not stat.S_ISDIR(st.st_mode) else 0, \
        st.st_size if stat.S_ISREG(st.st_mode) else 0


def excl(path):
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o640))


def rename2(flags):
    libc = nbtest.ctypes.CDLL(None, use_errno=True)

    def call(a, b):
        if libc.renameat2(-100, os.fsencode(a), -100, os.fsencode(b), flags) != 0:
            e = nbtest.ctypes.get_errno()
            raise OSError(e, os.strerror(e))

    return call


def unlinked_but_open(path):
    """An open file stays readable and writable after its name is gone."""
    write_file(path, b"before")
    fd = os.open(path, os.O_RDWR)
    os.unlink(path)
    try:
        first = os.pread(fd, 100, 0)
        os.pwrite(fd, b"AFTER", 0)
        return first, os.pread(fd, 100, 0), os.fstat(fd).st_size
    finally:
        os.close(fd)


def replaced_but_open(path):
    write_file(path, b"old")
    write_file(path + ".new", b"newer")
    fd = os.open(path, os.O_RDONLY)
    os.rename(path + ".new", path)
    try:
        return os.pread(fd, 100, 0), read_file(path)
    finally:
        os.close(fd)


def append_twice(path):
    a = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
    b = os.open(path, os.O_WRONLY | os.O_APPEND)
    for i in range(10):
        os.write(a, b"a%d" % i)
        os.write(b, b"b%d" % i)
    os.close(a)
    os.close(b)
    return read_file(path)


def list_while_deleting(path):
    os.mkdir(path)
    for i in range(3000):
        excl(os.path.join(path, f"f{i}"))
    seen = 0
    with os.scandir(path) as it:
        for entry in it:
            os.unlink(entry.path)
            seen += 1
    os.rmdir(path)
    return seen


def mmap_write(path):
    write_file(path, b"x" * 10000)
    with open(path, "r+b") as f, mmap.mmap(f.fileno(), 0) as m:
        m[5000:5005] = b"HELLO"
        m.flush()
    return read_file(path)


def posix_script(root):
    s = Script(root)
    s.do("mkdir", os.mkdir, "d", mode=0o750)
    s.do("mkdir again", os.mkdir, "d")
    s.do("mkdir below nothing", os.mkdir, "none/x")
    s.do("create", write_file, "d/a", data=b"hello")
    s.do("facts", facts, "d/a")
    s.do("exclusive", excl, "d/b")
    s.do("exclusive again", excl, "d/b")
    s.do("facts b", facts, "d/b")
    s.do("read", read_file, "d/a")
    s.do("read a directory", read_file, "d")
    s.do("read nothing", read_file, "d/none")
    s.do("write at offset", pwrite, "d/a", data=b"XY", offset=3)
    s.do("read", read_file, "d/a")
    s.do("hole", pwrite, "d/a", data=b"end", offset=70000)
    s.do("read", read_file, "d/a")
    s.do("truncate", os.truncate, "d/a", length=4)
    s.do("read", read_file, "d/a")
    s.do("grow", os.truncate, "d/a", length=9)
    s.do("read", read_file, "d/a")
    s.do("overwrite", write_file, "d/a", data=b"short")
    s.do("read", read_file, "d/a")
    s.do("append", write_file, "d/a", data=b"+more", mode="ab")
    s.do("read", read_file, "d/a")
    s.do("append twice", append_twice, "d/app")
    s.do("chmod", os.chmod, "d/a", mode=0o4711)
    s.do("facts", facts, "d/a")
    s.do("chmod dir", os.chmod, "d", mode=0o700)
    s.do("facts dir", facts, "d")
    s.do("utime", os.utime, "d/a", ns=(1_500_000_000_123_456_789, 1_400_000_000_987_654_321))
    s.do("mtime", lambda p: os.stat(p).st_mtime_ns, "d/a")
    s.do("symlink", lambda p: os.symlink("a", p), "d/link")
    s.do("readlink", os.readlink, "d/link")
    s.do("through the link", read_file, "d/link")
    s.do("dangling", lambda p: os.symlink("no/where", p), "d/dangling")
    s.do("read dangling", read_file, "d/dangling")
    s.do("hard link", os.link, "d/a", "d/hard")
    s.do("facts of both", lambda a, b: facts(a) == facts(b) and os.stat(a).st_ino == os.stat(b).st_ino, "d/a", "d/hard")
    s.do("write one", write_file, "d/hard", data=b"both")
    s.do("read other", read_file, "d/a")
    s.do("unlink one", os.unlink, "d/a")
    s.do("facts of the other", facts, "d/hard")
    s.do("rename", os.rename, "d/hard", "d/c")
    s.do("gone", os.lstat, "d/hard")
    s.do("rename over", os.rename, "d/c", "d/b")
    s.do("read", read_file, "d/b")
    s.do("rename nothing", os.rename, "d/none", "d/x")
    s.do("mkdir e", os.mkdir, "e")
    s.do("rename across", os.rename, "d/b", "e/b")
    s.do("rename dir over non-empty", os.rename, "d", "e")
    s.do("rename dir into itself", os.rename, "e", "e/in")
    s.do("rename file over dir", os.rename, "e/b", "d")
    s.do("noreplace", rename2(1), "e/b", "d/app")
    s.do("exchange", rename2(2), "e/b", "d/app")
    s.do("read", read_file, "e/b")
    s.do("move dir", os.rename, "d", "e/d2")
    s.do("read moved", read_file, "e/d2/app")
    s.do("rmdir non-empty", os.rmdir, "e")
    s.do("rmdir a file", os.rmdir, "e/b")
    s.do("unlink a directory", os.unlink, "e/d2")
    s.do("unlink nothing", os.unlink, "e/none")
    s.do("fifo", os.mkfifo, "e/fifo", mode=0o640)
    s.do("facts fifo", facts, "e/fifo")
    s.do("long name", write_file, "e/" + "n" * 255, data=b"1")
    s.do("too long", write_file, "e/" + "n" * 256, data=b"1")
    s.do("odd name", write_file, "e/ \n\x01ü'\"*?", data=b"odd")
    s.do("bytes name", lambda p: write_file(os.fsencode(p) + b"/\xff\xfe", b"raw"), "e")
    s.do("list", lambda p: sorted(os.listdir(os.fsencode(p))), "e")
    s.do("unlinked but open", unlinked_but_open, "e/open")
    s.do("replaced but open", replaced_but_open, "e/repl")
    s.do("list while deleting", list_while_deleting, "e/many")
    s.do("mmap", mmap_write, "e/map")
    s.do("fsync", lambda p: with_fd(p, os.fsync), "e/map")
    s.do("fallocate", lambda p: with_fd(p, lambda fd: os.posix_fallocate(fd, 0, 100_000)), "e/map")
    s.do("size", lambda p: os.stat(p).st_size, "e/map")
    s.do("a component is a file", os.lstat, "e/map/x")
    return s.out


class Mounted(nbtest.Case):
    def setUp(self):
        super().setUp()
        self.box = self.stand_in()

    def test_parity(self):
        self.mount(f"{self.box}:{self.dir}", None, "--symlinks", "raw")
        native = self.home / "native"
        native.mkdir(mode=0o700)
        if self.owner:
            self.chown_all(native)
        old = os.umask(0o022)
        try:
            on_mount = self.in_user(lambda: posix_script(self.mnt))
            on_native = self.in_user(lambda: posix_script(str(native)))
        finally:
            os.umask(old)
        for a, b in zip(on_mount, on_native):
            self.assertEqual(a, b)
        # What the mount showed is what lies in the sandbox's own directory.
        self.assertEqual(self.in_user(lambda: tree_of(self.mnt)), tree_of(self.dir))
        self.assertEqual(tree_of(self.dir), tree_of(native))

    def test_random_operations(self):
        seed = int(os.environ.get("NEARBOX_TEST_SEED", "20261121"))
        self.mount(f"{self.box}:{self.dir}", None, "--symlinks", "raw")
        native = self.home / "native"
        native.mkdir(mode=0o700)
        if self.owner:
            self.chown_all(native)

        def script(root):
            rng = random.Random(seed)
            s = Script(root)
            names = [f"{d}{n}" for d in ("", "p/", "q/", "p/r/") for n in "abc"] + ["p", "q", "p/r"]
            for step in range(600):
                a, b = rng.choice(names), rng.choice(names)
                kind = rng.randrange(11)
                data = bytes(rng.randrange(256) for _ in range(rng.randrange(200)))
                offset = rng.randrange(5000)
                what = f"seed {seed} step {step}"
                if kind == 0:
                    s.do(what + f" mkdir {a}", os.mkdir, a)
                elif kind in (1, 2):
                    s.do(what + f" write {a}", write_file, a, data=data)
                elif kind == 3:
                    s.do(what + f" pwrite {a}", pwrite, a, data=data or b"x", offset=offset)
                elif kind == 4:
                    s.do(what + f" truncate {a}", os.truncate, a, length=offset)
                elif kind == 5:
                    s.do(what + f" unlink {a}", os.unlink, a)
                elif kind == 6:
                    s.do(what + f" rmdir {a}", os.rmdir, a)
                elif kind == 7:
                    s.do(what + f" rename {a} {b}", os.rename, a, b)
                elif kind == 8:
                    s.do(what + f" link {a} {b}", os.link, a, b)
                elif kind == 9:
                    s.do(what + f" read {a}", read_file, a)
                else:
                    s.do(what + f" list {a}", lambda p: sorted(os.listdir(p)), a)
            return s.out

        on_mount = self.in_user(lambda: script(self.mnt))
        on_native = self.in_user(lambda: script(str(native)))
        for a, b in zip(on_mount, on_native):
            self.assertEqual(a, b)
        self.assertEqual(tree_of(self.dir), tree_of(native))

    def test_three_mounts_one_tree(self):
        """A root and two of its subdirectories by one daemon: a write through one is seen in the others."""
        root = self.home / "dir"
        (root / "one").mkdir()
        (root / "two").mkdir()
        (root / "one" / "f").write_bytes(b"first")
        os.link(root / "one" / "f", root / "two" / "g")
        if self.owner:
            self.chown_all(root)
        points = []
        for name, where in (("m0", ""), ("m1", "/one"), ("m2", "/two")):
            point = self.home / name
            point.mkdir()
            if self.owner:
                self.chown_all(point)
            self.mount(f"{self.box}:{root}{where}", str(point))
            points.append(str(point))
        m0, m1, m2 = points
        self.assertEqual(len(self.nb_json("status")["daemons"]), 1)

        def work():
            out = [read_file(f"{p}") for p in (f"{m0}/one/f", f"{m1}/f", f"{m2}/g", f"{m0}/two/g")]
            write_file(f"{m1}/f", b"second, and longer")
            return out

        self.assertEqual(self.in_user(work), [b"first"] * 4)
        for p in (f"{m0}/one/f", f"{m1}/f", f"{m2}/g", f"{m0}/two/g"):
            self.in_user(lambda p=p: wait_for(lambda: read_file(p) == b"second, and longer", p))
        self.assertEqual((root / "two" / "g").read_bytes(), b"second, and longer")

        def more():
            os.rename(f"{m0}/one/f", f"{m0}/two/h")
            os.mkdir(f"{m2}/new")
            write_file(f"{m2}/new/x", b"x")

        self.in_user(more)
        self.in_user(lambda: wait_for(lambda: not os.path.exists(f"{m1}/f"), "the name is gone in m1"))
        self.in_user(lambda: wait_for(lambda: read_file(f"{m2}/h") == b"second, and longer", "the new name in m2"))
        self.in_user(lambda: wait_for(lambda: read_file(f"{m0}/two/new/x") == b"x", "new file in m0"))
        self.assertEqual(tree_of(root), self.in_user(lambda: tree_of(m0)))
        for p in points:
            self.nb("unmount", p)

    def test_changes_of_a_command_are_seen_after_it(self):
        self.mount(f"{self.box}:{self.dir}")
        self.in_user(lambda: self.assertEqual(os.listdir(self.mnt), []))
        self.nb("exec", self.box, "-C", self.dir, "--", "sh", "-c", "mkdir -p a/b; echo hi > a/b/c; ln -s c a/b/l")
        self.assertEqual(self.in_user(lambda: read_file(f"{self.mnt}/a/b/l")), b"hi\n")
        self.nb("exec", self.box, "-C", self.dir, "--", "sh", "-c", "echo changed > a/b/c; rm a/b/l; echo > n")
        self.assertEqual(self.in_user(lambda: read_file(f"{self.mnt}/a/b/c")), b"changed\n")
        self.assertEqual(self.in_user(lambda: sorted(os.listdir(f"{self.mnt}/a/b") + os.listdir(self.mnt))),
                         ["a", "c", "n"])

    def test_a_directory_that_is_opened_up_is_listed(self):
        shut = os.path.join(self.dir, "shut")
        os.mkdir(shut)
        write_file(f"{shut}/f", b"text")
        if self.owner:
            self.chown_all(self.dir)
        os.chmod(shut, 0)
        self.mount(f"{self.box}:{self.dir}")

        def look():
            if os.geteuid() != 0:
                with self.assertRaises(PermissionError):
                    os.listdir(f"{self.mnt}/shut")
            os.chmod(f"{self.mnt}/shut", 0o700)
            return os.listdir(f"{self.mnt}/shut"), read_file(f"{self.mnt}/shut/f")

        self.assertEqual(self.in_user(look), (["f"], b"text"))

    def test_symlink_rules(self):
        root = self.home / "dir"
        (root / "in").mkdir()
        (root / "in" / "f").write_text("inside")
        os.symlink("in/f", root / "rel")
        os.symlink(f"{root}/in/f", root / "abs")
        os.symlink("/etc/hostname", root / "out")
        os.symlink("../../..", root / "up")
        if self.owner:
            self.chown_all(root)
        self.mount(f"{self.box}:{root}")

        def look():
            out = [os.readlink(f"{self.mnt}/rel"), os.readlink(f"{self.mnt}/abs"), read_file(f"{self.mnt}/abs")]
            for name in ("out", "up"):
                try:
                    out.append(os.readlink(f"{self.mnt}/{name}"))
                except OSError as e:
                    out.append(e.errno)
                out.append(stat.S_ISLNK(os.lstat(f"{self.mnt}/{name}").st_mode))
            return out

        rel, abs_, text, *outside = self.in_user(look)
        self.assertEqual((rel, abs_, text), ("in/f", "in/f", b"inside"))
        self.assertTrue(all(v is True for v in outside[1::2]))
        self.assertTrue(all(isinstance(v, int) for v in outside[0::2]), outside)
        self.nb("unmount", self.mnt)
        self.mount(f"{self.box}:{root}", None, "--symlinks", "raw")
        self.assertEqual(self.in_user(lambda: os.readlink(f"{self.mnt}/out")), "/etc/hostname")

    def test_a_mount_that_contains_itself(self):
        """Where the mountpoint lies in what is mounted, it shows as an empty directory, however late it came."""
        for i in range(300):
            os.makedirs(os.path.join(self.dir, "a", str(i), "b"))
        if self.owner:
            self.chown_all(self.dir)
        self.mount(f"{self.box}:{self.home}")
        wait_for(lambda: not self.nb_json("status")["daemons"][0]["mounts"][0]["loading"], "all is known")
        self.assertEqual(self.in_user(lambda: os.listdir(os.path.join(self.mnt, "mnt"))), [])
        self.assertEqual(self.in_user(lambda: len(os.listdir(os.path.join(self.mnt, "dir", "a")))), 300)

    def test_nothing_stays(self):
        self.mount(f"{self.box}:{self.dir}")
        self.nb("unmount", self.mnt)
        self.assertEqual(nbtest.mounts_below(str(self.home)), [])
        wait_for(lambda: self.nb_json("status")["daemons"] == [], "the daemon ends after its last use", 20)

    def test_unmounted_from_outside(self):
        self.mount(f"{self.box}:{self.dir}")
        tool = ["umount", self.mnt] if not self.owner else ["fusermount3", "-u", self.mnt]
        subprocess.run(tool, check=True, **self.as_user())
        wait_for(lambda: self.nb_json("status")["daemons"] == [], "the daemon noticed and ended", 20)


if __name__ == "__main__":
    nbtest.main()
