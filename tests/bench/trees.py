# SPDX-License-Identifier: Apache-2.0
"""The trees and files that are measured; made once, kept in a cache directory outside the repository."""
import hashlib
import json
import os
import random
import shutil
import stat
import subprocess

from wan import BenchError

APP_PACKAGES = {
    "next": "14", "react": "18", "react-dom": "18", "@mui/material": "5", "@mui/icons-material": "5",
    "@emotion/react": "11", "@emotion/styled": "11", "typescript": "5", "eslint": "8", "webpack": "5",
    "rxjs": "7", "lodash": "4", "date-fns": "3",
}
SYNTHETIC_FILES, SYNTHETIC_DIRS = 50_000, 2_500
SYNTHETIC_SEED = 20_240_601
MILLION_FILES, MILLION_DIRS = 1_000_000, 50_000
COLD_DIRS = 2_000
REPOSITORY_PACKAGES = ("typescript", "rxjs", "lodash", "webpack", "next")
NPM_PACKAGES = {"rxjs": "7", "lodash": "4", "typescript": "5", "webpack": "5", "eslint": "8"}
FIXED_TIME = 1_700_000_000  # mtime of generated files
BIG_BYTES = 300_000_000
HUGE_BYTES = 2_000_000_000


def describe(root):
    """Counts a tree; the digest covers type, mode, size and path of every entry (not contents, not times)."""
    files = directories = links = size = 0
    lines = []
    for parent, names, leaves in os.walk(root):
        for name in names + leaves:
            path = os.path.join(parent, name)
            s = os.lstat(path)
            if stat.S_ISDIR(s.st_mode):
                directories += 1
            elif stat.S_ISLNK(s.st_mode):
                links += 1
            else:
                files += 1
                size += s.st_size
            length = 0 if stat.S_ISDIR(s.st_mode) else s.st_size
            lines.append(b"%o %d %s" % (s.st_mode, length, os.fsencode(os.path.relpath(path, root))))
    digest = hashlib.sha256(b"\n".join(sorted(lines))).hexdigest()
    # Entries as find counts them: the root too.
    return {"files": files, "directories": directories, "symlinks": links, "bytes": size,
            "entries": files + directories + links + 1, "digest": digest[:16]}


def make_synthetic(root):
    rng = random.Random(SYNTHETIC_SEED)
    paths = [root]
    for i in range(SYNTHETIC_DIRS):
        # Near the root most of the time, as source trees are; at most some ten levels.
        parent = paths[int(len(paths) * rng.random() ** 2)]
        path = os.path.join(parent, f"{rng.choice(('src', 'lib', 'pkg', 'util', 'test', 'dist'))}-{i}")
        os.mkdir(path)
        paths.append(path)
    block = rng.randbytes(65_536)
    for i in range(SYNTHETIC_FILES):
        suffix = rng.choice((".js", ".d.ts", ".map", ".json", ".md", ".mjs"))
        path = os.path.join(rng.choice(paths), f"module{i:05d}{suffix}")
        with open(path, "wb") as f:
            f.write(block[:min(int(rng.lognormvariate(7.3, 1.2)), len(block))])
        os.utime(path, (FIXED_TIME, FIXED_TIME))
    for path in reversed(paths):
        os.utime(path, (FIXED_TIME, FIXED_TIME))


def make_app(root):
    if not shutil.which("npm"):
        raise BenchError("npm is missing: install it, or take --tree synthetic-50k")
    with open(os.path.join(root, "package.json"), "w", encoding="utf-8") as f:
        json.dump({"name": "bench-app", "version": "1.0.0", "private": True, "dependencies": APP_PACKAGES}, f, indent=1)
    done = subprocess.run(["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"],
                          cwd=root, capture_output=True, text=True, timeout=1800, check=False)
    if done.returncode != 0:
        raise BenchError(f"npm install failed: {done.stderr[-1500:]}")


def make_million(root):
    """1,000,000 files in 50,000 directories; empty, since only names and attributes are looked at."""
    for i in range(MILLION_DIRS):
        path = os.path.join(root, f"part-{i % 50:02d}", f"package-{i // 50:04d}")
        os.makedirs(path)
        for k in range(MILLION_FILES // MILLION_DIRS):
            os.close(os.open(os.path.join(path, f"module-{i:05d}-{k:02d}.js"), os.O_CREAT | os.O_WRONLY, 0o644))


def make_repository(root):
    """Packages of the tree app, copied and committed."""
    source = os.path.join(os.path.dirname(root), "app", "node_modules")
    if not os.path.isdir(source):
        raise BenchError("the tree app has to be made first: run another row with --tree app")
    for part in REPOSITORY_PACKAGES:
        shutil.copytree(os.path.join(source, part), os.path.join(root, part), symlinks=True)
    for command in (["init", "-q"], ["add", "-A", "-f"],
                    ["-c", "user.name=bench", "-c", "user.email=bench@localhost", "commit", "-q", "-m", "all"]):
        subprocess.run(["git", "-c", "safe.directory=*", "-c", "gc.auto=0", "-C", root, *command], check=True)


def make_cold(root):
    """Files of 4 KiB, each in a directory of its own, so that none is another's neighbour."""
    rng = random.Random(SYNTHETIC_SEED)
    for i in range(COLD_DIRS):
        path = os.path.join(root, f"d{i:04d}")
        os.mkdir(path)
        with open(os.path.join(path, "file"), "wb") as f:
            f.write(rng.randbytes(4096))


TREES = {"app": make_app, "synthetic-50k": make_synthetic, "synthetic-1m": make_million, "repository": make_repository,
         "cold": make_cold}


def tree(cache, name):
    """Path and description of a tree, made when it is not there yet."""
    root, record = os.path.join(cache, name), os.path.join(cache, name + ".json")
    if os.path.exists(record):
        with open(record, encoding="utf-8") as f:
            known = json.load(f)
    else:
        shutil.rmtree(root, ignore_errors=True)
        os.makedirs(root)
        print(f"making the tree {name} …", flush=True)
        TREES[name](root)
        known = describe(root)
        with open(record + ".new", "w", encoding="utf-8") as f:
            json.dump(known, f)
        os.rename(record + ".new", record)
    # Also brings the metadata into this machine's memory: the disk is not what is measured.
    if describe(root) != known:
        raise BenchError(f"the cached tree {name} has changed: delete it and its record from the cache directory")
    return root, {"name": name, **known}


def big_files(cache, count):
    """Files of 300 MB that do not compress; one a round, so that no contender has seen it. In memory afterwards."""
    root = os.path.join(cache, "big")
    os.makedirs(root, exist_ok=True)
    names = []
    for i in range(count):
        name = f"big-{i:02d}.bin"
        path = os.path.join(root, name)
        if not os.path.exists(path) or os.path.getsize(path) != BIG_BYTES:
            rng = random.Random(i)
            with open(path + ".new", "wb") as f:
                for _ in range(BIG_BYTES // 1_000_000):
                    f.write(rng.randbytes(1_000_000))
            os.rename(path + ".new", path)
        with open(path, "rb", buffering=0) as f:
            while f.read(1 << 20):
                pass
        names.append(name)
    return root, names


def huge_file(cache):
    """A file of 2 GB that does not compress. In memory afterwards."""
    root = os.path.join(cache, "huge")
    os.makedirs(root, exist_ok=True)
    path = os.path.join(root, "huge.bin")
    if not os.path.exists(path) or os.path.getsize(path) != HUGE_BYTES:
        rng = random.Random(99)
        with open(path + ".new", "wb") as f:
            for _ in range(HUGE_BYTES // 1_000_000):
                f.write(rng.randbytes(1_000_000))
        os.rename(path + ".new", path)
    with open(path, "rb", buffering=0) as f:
        while f.read(1 << 20):
            pass
    return root, "huge.bin"


def write_npm_project(root):
    with open(os.path.join(root, "package.json"), "w", encoding="utf-8") as f:
        json.dump({"name": "bench-build", "version": "1.0.0", "private": True, "dependencies": NPM_PACKAGES}, f, indent=1)


def npm_cache(cache):
    """A cache of npm from which NPM_PACKAGES are installed without a network; made over the network once."""
    root = os.path.join(cache, "npm-cache")
    if os.path.isdir(root):
        return root
    if not shutil.which("npm"):
        raise BenchError("npm is missing: install it")
    project = os.path.join(cache, "npm-project")
    shutil.rmtree(project, ignore_errors=True)
    os.makedirs(project)
    write_npm_project(project)
    done = subprocess.run(["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error", f"--cache={root}.new"],
                          cwd=project, capture_output=True, text=True, timeout=1800, check=False)
    shutil.rmtree(project)
    if done.returncode != 0:
        raise BenchError(f"npm install failed: {done.stderr[-1500:]}")
    os.rename(root + ".new", root)
    return root


def subset(root, wanted_directories):
    """Some whole subtrees with about that many directories in all, evenly spread over the tree; paths are relative.

    Subtrees larger than a fifth of what is wanted are left out, so that many different ones are taken.
    """
    counts = {}
    for parent, names, _ in os.walk(root, topdown=False):
        counts[parent] = 1 + sum(counts.get(os.path.join(parent, n), 0) for n in names)
    small = [p for p in sorted(counts) if counts[p] <= max(1, wanted_directories // 5)]
    top = [p for p in small if os.path.dirname(p) not in small]
    step = max(1, sum(counts[p] for p in top) // wanted_directories)
    chosen = top[::step]
    return [os.path.relpath(p, root) for p in chosen], sum(counts[p] for p in chosen)
