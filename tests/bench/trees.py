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
FIXED_TIME = 1_700_000_000  # mtime of generated files
BIG_BYTES = 300_000_000


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


TREES = {"app": make_app, "synthetic-50k": make_synthetic}


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
