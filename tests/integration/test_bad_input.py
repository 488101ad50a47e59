# SPDX-License-Identifier: Apache-2.0
"""Bad input: each a clear error with what to do next, the right exit code, nothing left mounted or running."""
import json
import os
import socket
import subprocess

import nbtest


class BadInput(nbtest.Case):
    def refused(self, *args, code, text, error_code=None):
        done = self.nb(*args, code=code)
        message = done.stderr.decode()
        for part in [text] if isinstance(text, str) else text:
            self.assertIn(part, message, f"{args}: {message}")
        self.assertTrue(message.startswith("nearbox: "), message)
        if error_code:
            shown = self.nb(*args, "--json", code=code) if args[0] != "exec" else None
            if shown:
                value = json.loads(shown.stdout.splitlines()[-1])
                self.assertEqual(value["errorCode"], error_code)
        self.assertEqual(nbtest.mounts_below(str(self.home)), [])

    def tearDown(self):
        left = nbtest.mounts_below(str(self.home))
        self.assertEqual(left, [])
        # A daemon ends by itself a few seconds after its last use.
        nbtest.wait_for(lambda: not self.processes("nearbox", "daemon --target"), "nothing is left running", 20)

    def test_no_key(self):
        self.refused("mount", "i4k2m9x0example", self.mnt, code=3, text=["E2B_API_KEY"], error_code="auth.missing")

    def test_wrong_key(self):
        server = self.serve()
        self.env["E2B_API_KEY"] = "e2b_" + "0" * 40
        self.refused("sandbox", "list", code=3, text="refused the API key", error_code="auth.rejected")
        self.refused("mount", "i4k2m9x0example", self.mnt, code=3, text="refused the API key")
        self.stop(server)

    def test_unknown_sandbox(self):
        server = self.serve()
        self.refused("mount", "i4k2m9x0example", self.mnt, code=4, text="i4k2m9x0example",
                     error_code="sandbox.not_found")
        self.refused("exec", "i4k2m9x0example", "--", "true", code=125, text="i4k2m9x0example")
        self.stop(server)

    def test_dead_server(self):
        server = self.serve()
        self.stop(server)
        self.refused("mount", "i4k2m9x0example", self.mnt, code=8, text="Cannot reach",
                     error_code="net.unreachable")
        self.refused("sandbox", "list", code=8, text="Cannot reach", error_code="net.unreachable")

    def test_port_taken(self):
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            done = self.nb("serve", "--listen", f"127.0.0.1:{port}", code=None)
            self.assertNotEqual(done.returncode, 0)
            self.assertIn(str(port), done.stderr.decode())

    def test_mountpoints(self):
        box = self.stand_in()
        target = f"{box}:{self.dir}"
        self.refused("mount", target, str(self.home / "none"), code=2, text=["none", "mkdir"],
                     error_code="local.not_found")
        file = self.home / "file"
        file.write_text("x")
        self.refused("mount", target, str(file), code=2, text="not a directory", error_code="local.not_directory")
        full = self.home / "full"
        full.mkdir()
        (full / "x").write_text("x")
        if self.owner:
            self.chown_all(full)
        self.refused("mount", target, str(full), code=1, text=["would hide", "--nonempty"], error_code="mount.busy")
        self.mount(target)
        done = self.nb("mount", target, self.mnt, code=1)
        self.assertIn("already", done.stderr.decode())
        self.nb("unmount", self.mnt)

    def test_missing_remote_directory(self):
        box = self.stand_in()
        self.refused("mount", f"{box}:/no/such/dir", self.mnt, code=4, text="/no/such/dir",
                     error_code="remote.not_found")

    def test_numeric_owners_are_for_root(self):
        box = self.stand_in()
        if self.owner:
            self.refused("mount", f"{box}:{self.dir}", self.mnt, "--owner", "numeric", code=2, text="root",
                         error_code="arg.invalid")

    def test_errors_of_the_sandbox_are_not_local_ones(self):
        box = self.stand_in()
        self.refused("exec", box, "-C", "/no/such/dir", "--", "true", code=125, text="docker:box",
                     error_code="remote.not_found")

    def test_unreachable_host(self):
        self.stand_in()
        self.refused("mount", "docker:gone", self.mnt, code=8, text="No such container",
                     error_code="net.unreachable")
        self.refused("mount", "ssh:host.invalid", self.mnt, code=8, text="host.invalid",
                     error_code="net.unreachable")

    def test_unmount_of_what_is_not_mounted(self):
        self.refused("unmount", self.mnt, code=2, text="not", error_code="arg.invalid")

    def test_words(self):
        self.refused("mount", "UPPER!", self.mnt, code=2, text="not valid")
        self.refused("exec", "docker:x", code=2, text="command")
        self.refused("frobnicate", code=2, text="frobnicate")

    def test_fuse_missing(self):
        """In a mount namespace without /dev/fuse: a clear error, and everything else works."""
        if os.getuid() != 0 or self.owner:
            return  # taking the device away needs root; the root run of this suite does it
        box = self.stand_in()
        script = (f"mount -t tmpfs none /dev/shm && touch /dev/shm/x && mount -t tmpfs none /mnt && "
                  f"mkdir /mnt/dev && cp -a /dev/null /dev/urandom /dev/zero /mnt/dev/ && mount --move /mnt /mnt 2>/dev/null; "
                  f"mount --bind /mnt/dev /dev && "
                  f"{nbtest.NEARBOX} exec {box} -- echo works && {nbtest.NEARBOX} mount {box}:{self.dir} {self.mnt}")
        done = subprocess.run(["unshare", "-m", "sh", "-c", script], env=self.env, capture_output=True, timeout=120,
                              stdin=subprocess.DEVNULL)
        self.assertEqual(done.returncode, 1, done.stderr)
        self.assertEqual(done.stdout, b"works\n")
        self.assertIn(b"FUSE is not available", done.stderr)


if __name__ == "__main__":
    nbtest.main()
