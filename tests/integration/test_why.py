# SPDX-License-Identifier: Apache-2.0
"""`nearbox why`: which rule decided, for people and for programs."""
import json
import os
import unittest

import nbtest


class Why(nbtest.Case):
    def setUp(self):
        super().setUp()
        self.env.update(GIT_CONFIG_NOSYSTEM="1", GIT_CONFIG_GLOBAL="/dev/null")
        self.run_cmd("git", "init", "-q", self.dir)
        self.write(".gitignore", "*.log\n\ndist/\n")
        self.write(".nearboxignore", "fixtures/\n")
        self.write("packages/a/dist/keep.js", "x\n")
        self.write(".env", "PORT=1\n")
        self.git("add", "-f", "packages/a/dist/keep.js")

    def write(self, path, text):
        whole = os.path.join(self.dir, path)
        os.makedirs(os.path.dirname(whole), exist_ok=True)
        with open(whole, "w", encoding="utf-8") as f:
            f.write(text)
        if self.owner:
            self.chown_all(self.dir)

    def git(self, *args):
        done = self.run_cmd("git", "-C", self.dir, *args)
        self.assertEqual(done.returncode, 0, done.stderr)

    def why(self, path, *args):
        return self.nb_json("why", path, *args, cwd=self.dir)

    def test_answers_of_programs(self):
        answer = self.why("packages/a/dist/x/y.js")
        self.assertEqual((answer["placement"], answer["rule"], answer["reason"]), ("remote", "gitignore", "gitignore"))
        self.assertEqual((answer["file"], answer["line"], answer["pattern"]), (".gitignore", 3, "dist/"))
        self.assertEqual((answer["matched"], answer["root"]), ("packages/a/dist", os.path.realpath(self.dir)))
        self.assertEqual(answer["path"], "packages/a/dist/x/y.js")
        self.assertEqual(self.why("packages/a/dist/keep.js")["rule"], "tracked")
        self.assertEqual(self.why("src/main.c")["placement"], "synced")
        self.assertIsNone(self.why("src/main.c")["reason"])
        self.assertEqual(self.why("fixtures/x")["rule"], "nearboxignore")
        self.assertEqual(self.why(".env")["placement"], "local")
        self.assertEqual(self.why(".env", "--include", ".env")["rule"], "include")
        self.assertEqual(self.why(".env", "--include-secrets")["placement"], "synced")
        self.assertEqual(self.why("a.log", "--no-gitignore")["placement"], "synced")
        self.assertEqual(self.why("docs/x", "--exclude", "docs")["reason"], "pattern")
        self.assertEqual(self.why("node_modules/")["rule"], "default")
        self.assertEqual(self.why(".git")["rule"], "dot-git")
        self.assertEqual(self.why(".")["text"], "it is the root")
        self.assertEqual(self.why(self.dir + "/packages/a", "--root", self.dir + "/packages")["path"], "a")

    def test_words_for_people(self):
        out = self.nb("why", "b.log", "packages", cwd=self.dir).stdout.decode()
        self.assertEqual(out, "b.log: remote, pattern `*.log` of .gitignore, line 1\npackages: synced, git tracks it, or files in it\n")

    def test_errors(self):
        done = self.nb("why", "/etc/passwd", "--root", self.dir, "--json", code=2)
        self.assertEqual(json.loads(done.stdout)["errorCode"], "local.outside_root")
        done = self.nb("why", "x", "--root", self.dir + "/missing", "--json", code=2)
        self.assertEqual(json.loads(done.stdout)["errorCode"], "local.not_found")
        self.nb("why", code=2)


if __name__ == "__main__":
    unittest.main()
