# SPDX-License-Identifier: Apache-2.0
"""Commands in the sandbox: bytes, codes, signals, input; across cuts of the link."""
import hashlib
import json
import os
import signal
import subprocess
import time

import nbtest
from nbtest import NEARBOX, wait_for


class Exec(nbtest.Case):
    def setUp(self):
        super().setUp()
        self.box = self.stand_in()

    def test_bytes_and_codes(self):
        done = self.nb("exec", self.box, "--", "sh", "-c", "printf 'a\\0b\\377'; printf err >&2; exit 7", code=7)
        self.assertEqual(done.stdout, b"a\0b\377")
        self.assertEqual(done.stderr, b"err")

    def test_arguments_are_kept(self):
        words = ["a b", "*", "$HOME", "'q'", '"', "", "ü"]
        done = self.nb("exec", self.box, "--", "printf", "[%s]", *words)
        self.assertEqual(done.stdout.decode(), "".join(f"[{w}]" for w in words))

    def test_cwd_and_env(self):
        done = self.nb("exec", self.box, "-C", self.dir, "-e", "K=v w", "--", "sh", "-c", 'pwd; echo "$K"')
        self.assertEqual(done.stdout.decode().split("\n")[:2], [self.dir, "v w"])

    def test_stdin_both_ways(self):
        data = os.urandom(3_000_000)
        done = self.nb("exec", self.box, "--", "cat", input=data)
        self.assertEqual(hashlib.sha256(done.stdout).digest(), hashlib.sha256(data).digest())

    def test_closed_streams(self):
        for closed, out in (("<&-", b"0\n"), ("<&- 2>&-", b"0\n"), ("<&- >&- 2>&-", b"")):
            line = f'exec "$0" exec "$1" -- sh -c "cat | wc -c; exit 7" {closed}'
            done = self.run_cmd("sh", "-c", line, NEARBOX, self.box)
            self.assertEqual((done.returncode, done.stdout), (7, out), (closed, done.stderr))

    def test_unread_stdin_does_not_hold_signals(self):
        process = self.popen(NEARBOX, "exec", self.box, "--", "sh", "-c", "echo up; exec sleep 300",
                             stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.assertEqual(process.stdout.readline(), b"up\n")
        os.set_blocking(process.stdin.fileno(), False)
        try:
            process.stdin.write(b"x" * 1_000_000)
        except BlockingIOError:
            pass
        process.send_signal(signal.SIGTERM)
        self.assertEqual(process.wait(30), 128 + signal.SIGTERM)
        process.stdout.close()
        try:
            process.stdin.close()
        except (BrokenPipeError, BlockingIOError):
            pass

    def test_signal_code(self):
        self.nb("exec", self.box, "--", "sh", "-c", "kill -9 $$", code=137)

    def test_missing_program(self):
        self.nb("exec", self.box, "--", "no-such-program-here", code=127)

    def test_missing_directory(self):
        done = self.nb("exec", self.box, "-C", "/no/such/dir", "--", "true", code=125)
        self.assertIn(b"/no/such/dir", done.stderr)

    def test_client_gone_ends_the_command(self):
        marker = self.home / "pid"
        process = self.popen(NEARBOX, "exec", self.box, "--", "sh", "-c", f"echo $$ > {marker}; sleep 300",
                             stdin=subprocess.DEVNULL)
        pid = int(wait_for(lambda: marker.exists() and marker.read_text().strip(), "the command runs"))
        process.kill()
        process.wait()
        wait_for(lambda: not os.path.exists(f"/proc/{pid}"), "the command was ended", 30)

    def test_relay_killed_under_a_command(self):
        """The stdio relay dies while a command prints: nothing lost, nothing doubled, right code."""
        process = self.popen(NEARBOX, "exec", self.box, "--ring", "65536", "--", "sh", "-c",
                             "i=0; while [ $i -lt 40000 ]; do echo line $i; i=$((i+1)); done; exit 9",
                             stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
        first = process.stdout.read(1000)
        for _ in range(3):
            out = subprocess.run(["pgrep", "-f", "nearbox-agent-.* connect"], capture_output=True, text=True).stdout
            for pid in map(int, out.split()):
                if pid in nbtest.descendants_of_home(self.home):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.2)  # lets the command go on between two kills; nothing depends on its length
        rest = process.stdout.read()
        self.assertEqual(process.wait(60), 9)
        self.assertEqual((first + rest).decode(), "".join(f"line {i}\n" for i in range(40000)))
        process.stdout.close()


if __name__ == "__main__":
    nbtest.main()
