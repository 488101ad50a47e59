# SPDX-License-Identifier: Apache-2.0
"""pnpm's store and a project in one mount: files with two names, made there and made here.

NB_PNPM: pnpm's program, a script for node. Packages come from the npm registry.
"""
import json
import os
import shutil
import subprocess
import sys

import nbtest
from nbtest import main

PACKAGES = {"is-odd": "3.0.1", "chalk": "4.1.2", "lodash": "4.17.21"}


class Pnpm(nbtest.Case):
    def setUp(self):
        super().setUp()
        self.box = self.stand_in()
        for name in ("app", "other"):
            root = f"{self.dir}/{name}"
            os.mkdir(root)
            with open(f"{root}/package.json", "w", encoding="utf-8") as f:
                json.dump({"name": name, "version": "1.0.0", "dependencies": PACKAGES}, f)
        if self.owner:
            self.chown_all(self.dir)
        self.node = shutil.which("node")
        # npm knows where the certificates are; pnpm looks for npm's settings elsewhere.
        found = subprocess.run(["npm", "config", "get", "cafile"], capture_output=True, text=True, check=True)
        cafile = found.stdout.strip()
        self.settings = ["env", f"npm_config_cafile={cafile}"] if os.path.exists(cafile) else []
        self.nb("mount", f"{self.box}:{self.dir}", self.mnt)

    def pnpm(self, root, *args):
        return [*self.settings, self.node, os.environ["NB_PNPM"], "--dir", f"{root}/app", "--store-dir", f"{root}/store",
                "--config.confirmModulesPurge=false", "--config.package-import-method=hardlink", *args]

    def files(self, root):
        """Of each regular file: size, number of links, inode number, by its path."""
        def walk():
            found = {}
            for base, _, files in os.walk(root):
                for name in files:
                    full = os.path.join(base, name)
                    st = os.lstat(full)
                    found[os.path.relpath(full, root)] = (st.st_size, st.st_nlink, st.st_ino)
            return found
        return self.in_user(walk)

    def content(self, path):
        def read():
            with open(path, "rb") as f:
                return f.read()
        return self.in_user(read)

    def linked(self, root):
        """Files of the project that are names of files in the store."""
        store = {ino for ino in (row[2] for path, row in self.files(root).items() if path.startswith("store/"))}
        return {path for path, row in self.files(root).items() if path.startswith("app/") and row[2] in store}

    def agree(self):
        self.nb("flush")
        self.assertEqual(self.files(self.mnt), self.files(self.dir))

    def test_installed_in_the_sandbox(self):
        self.nb("exec", self.box, "--", *self.pnpm(self.dir, "install"))
        self.agree()
        names = self.linked(self.mnt)
        self.assertGreater(len(names), 500)
        self.assertEqual(names, self.linked(self.dir))
        # One file: what is written by the one name is read by the other, from here and from there.
        one = next(p for p in sorted(names) if p.endswith("/lodash/lodash.js"))
        ino = self.files(self.mnt)[one][2]
        other = next(p for p, row in self.files(self.mnt).items() if p.startswith("store/") and row[2] == ino)
        self.assertEqual(self.content(f"{self.mnt}/{other}"), self.content(f"{self.dir}/{one}"))
        for write, root in ((one, self.mnt), (other, self.dir)):
            def append(path=f"{root}/{write}"):
                with open(path, "ab") as f:
                    f.write(b"// one more line\n")
            self.in_user(append)
            self.nb("flush")
            want = self.content(f"{self.dir}/{one}")
            self.assertTrue(want.endswith(b"// one more line\n"))
            for name in (one, other):
                self.assertEqual(self.content(f"{self.mnt}/{name}"), want, name)
                self.assertEqual(self.content(f"{self.dir}/{name}"), want, name)
        self.agree()

    def test_installed_through_the_mount(self):
        done = self.run_cmd(*self.pnpm(self.mnt, "install"))
        self.assertEqual(done.returncode, 0, done.stdout[-2000:] + done.stderr[-2000:] + self.logs().encode())
        self.agree()
        self.assertGreater(len(self.linked(self.dir)), 500)
        script = "console.log(require('is-odd')(3), require('lodash').chunk([1, 2, 3], 2).length)"
        for root in (self.mnt, self.dir):
            # Not as the working directory of the new process: who starts it may not enter the mount.
            done = self.run_cmd("sh", "-c", 'cd "$0" && exec "$@"', f"{root}/app", self.node, "-e", script)
            self.assertEqual(done.stdout, b"true 2\n", done.stderr)
        # What the store holds is what it says; and a project of its own gets no bytes but links.
        done = self.run_cmd(*self.pnpm(self.mnt, "store", "status"))
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        self.nb("exec", self.box, "--", "rm", "-rf", f"{self.dir}/app/node_modules")
        self.assertEqual([p for p in self.files(self.mnt) if p.startswith("app/node_modules")], [])
        done = self.run_cmd(*self.pnpm(self.mnt, "install", "--offline", "--frozen-lockfile"))
        self.assertEqual(done.returncode, 0, done.stdout[-2000:] + done.stderr[-2000:] + self.logs().encode())
        self.agree()
        self.assertGreater(len(self.linked(self.mnt)), 500)


if __name__ == "__main__":
    if "NB_PNPM" not in os.environ:
        sys.exit("NB_PNPM: where is pnpm's script?")
    main()
