# SPDX-License-Identifier: Apache-2.0
"""The TypeScript compiler in the sandbox compiles what a sync changed and nothing else, whatever the clocks say.

NB_TSC: its program, a script for node.
"""
import json
import os
import shutil

import test_sync
from nbtest import main

OPTIONS = {"compilerOptions": {"incremental": True, "outDir": "out", "types": []}, "include": ["*.ts"]}


class Tsc(test_sync.ClockTests, test_sync.ClockCase):
    suffix = ".ts"
    mode = ["-b"]  # up to date or not by times

    def lay_out(self, mtime):
        self.put("tsconfig.json", json.dumps(OPTIONS), mtime=mtime)

    def text(self, name, change):
        return f"export const {name}: string = '{change}';\n"

    def results(self):
        """Content and identity of each result that is there."""
        out = self.dst / "out"
        return {name: ((out / f"{name}.js").read_bytes(), (out / f"{name}.js").stat().st_mtime_ns)
                for name in ("a", "b") if (out / f"{name}.js").exists()}

    def build(self):
        before = self.results()
        done = self.run_cmd("sh", "-c", 'cd "$0" && exec "$@"', str(self.dst), shutil.which("node"), os.environ["NB_TSC"],
                            *self.mode)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        after = self.results()
        for name in ("a", "b"):  # what is there is what was sent
            said = (self.src / f"{name}.ts").read_text().split("'")[1]
            self.assertIn(f"'{said}'".encode(), after[name][0])
        return [name for name in ("a", "b") if before.get(name) != after[name]]


class TscIncremental(Tsc):
    mode = ["-p", "."]


if __name__ == "__main__":
    main()
