# SPDX-License-Identifier: Apache-2.0
"""A machine reached by ssh: a real sshd of the test's own, with its own keys and configuration."""
import os
import pathlib
import pwd
import signal
import socket
import subprocess

import nbtest
from nbtest import NEARBOX, wait_for

SSHD = "/usr/sbin/sshd"
PRINTER = "i=0; while [ $i -lt 40000 ]; do echo line $i; i=$((i+1)); done; exit 11"
EXPECTED = "".join(f"line {i}\n" for i in range(40000)).encode()


class Ssh(nbtest.Case):
    def setUp(self):
        super().setUp()
        if not os.path.exists(SSHD):
            self.skipTest("no openssh-server here")
        if os.getuid() == 0:
            os.makedirs("/run/sshd", mode=0o755, exist_ok=True)  # where sshd of root wants to live
        self.ssh_dir = self.home / "ssh"
        self.ssh_dir.mkdir(mode=0o700)
        for name in ("host", "client"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.ssh_dir / name], check=True)
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.rc("")
        self.write_files()
        if self.owner:
            self.chown_all(self.home)
        self.start_sshd()
        self.env["NEARBOX_SSH"] = f"ssh -F {self.ssh_dir / 'client_config'}"
        self.box = "ssh:box"

    def rc(self, text):
        """What the account's login runs first. sshd starts the shell of passwd in the home that passwd names, so
        the test's home and its noise come with the key's own command."""
        script = self.home / "login"
        script.write_text("".join(f"export {name}='{self.env[name]}'\n" for name in (
            "HOME", "NEARBOX_AGENT_STATE_DIR", "NEARBOX_FAULT_FILE", "NB_TEST_HOME")) + "cd\n" + text +
            '\neval "$SSH_ORIGINAL_COMMAND"\n')

    def write_files(self):
        public = (self.ssh_dir / "client.pub").read_text()
        (self.ssh_dir / "authorized_keys").write_text(f'command=". {self.home}/login" {public}')
        (self.ssh_dir / "sshd_config").write_text(
            f"ListenAddress 127.0.0.1\nPort {self.port}\nHostKey {self.ssh_dir}/host\nPidFile none\n"
            f"AuthorizedKeysFile {self.ssh_dir}/authorized_keys\nUsePAM no\nStrictModes no\n"
            "PasswordAuthentication no\nKbdInteractiveAuthentication no\nPermitRootLogin yes\nUseDNS no\n")
        user = self.owner.pw_name if self.owner else pwd.getpwuid(os.getuid()).pw_name
        key = " ".join((self.ssh_dir / "host.pub").read_text().split()[:2])
        (self.ssh_dir / "known_hosts").write_text(f"[127.0.0.1]:{self.port} {key}\n")
        (self.ssh_dir / "client_config").write_text(
            f"Host box\n  HostName 127.0.0.1\n  Port {self.port}\n  User {user}\n"
            f"Host *\n  IdentityFile {self.ssh_dir}/client\n  IdentitiesOnly yes\n  StrictHostKeyChecking yes\n"
            f"  UserKnownHostsFile {self.ssh_dir}/known_hosts\n  GlobalKnownHostsFile none\n")

    def start_sshd(self):
        log = open(self.home / "sshd.log", "wb")
        self.sshd = self.popen(SSHD, "-D", "-e", "-f", str(self.ssh_dir / "sshd_config"), stdin=subprocess.DEVNULL,
                               stdout=log, stderr=log)
        log.close()

        def listens():
            self.assertIsNone(self.sshd.poll(), (self.home / "sshd.log").read_text())
            with socket.socket() as s:
                return s.connect_ex(("127.0.0.1", self.port)) == 0

        self.addCleanup(self.stop_sshd)
        wait_for(listens, "sshd listens")

    def stop_sshd(self):
        for pid in self.session_processes():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        if self.sshd.poll() is None:
            self.sshd.terminate()
        self.sshd.wait(20)

    def children(self, parent):
        out = subprocess.run(["ps", "-o", "pid=", "--ppid", str(parent)], capture_output=True, text=True).stdout
        return [int(pid) for pid in out.split()]

    def session_processes(self):
        """sshd's processes of the connections that are open, both of each where it separates privileges."""
        found = []
        for child in self.children(self.sshd.pid):
            found += [child] + [p for p in self.children(child) if self.name(p).startswith("sshd")]
        return found

    def name(self, pid):
        try:
            return pathlib.Path(f"/proc/{pid}/comm").read_text().strip()
        except OSError:
            return ""

    def clients(self):
        return [pid for pid in self.processes("client_config") if self.name(pid) == "ssh"]

    def printer(self):
        return self.popen(NEARBOX, "exec", self.box, "--ring", "65536", "--", "sh", "-c", PRINTER,
                          stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0)

    def killed_under_a_command(self, victims):
        process = self.printer()
        first = process.stdout.read(1000)
        for _ in range(3):
            pids = wait_for(lambda: len(found := victims()) >= 2 and found, "both connections stand")
            for pid in pids:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
            wait_for(lambda: not set(victims()) & set(pids), "they are gone")
            first += process.stdout.read(1000)  # and the command goes on before the next kill
        rest, err = process.communicate(timeout=120)
        self.assertEqual(process.returncode, 11, (err, self.logs()))
        self.assertTrue(first + rest == EXPECTED, f"{len(first + rest)} bytes, not the {len(EXPECTED)} expected")

    def test_exec(self):
        done = self.nb("exec", self.box, "--", "sh", "-c", "printf 'a\\0b\\377'; printf err >&2; exit 7", code=7)
        self.assertEqual((done.stdout, done.stderr), (b"a\0b\377", b"err"))
        words = ["a b", "*", "$HOME", "'q'", '"', "", "ü"]
        done = self.nb("exec", self.box, "--", "printf", "[%s]", *words)
        self.assertEqual(done.stdout.decode(), "".join(f"[{w}]" for w in words))
        data = os.urandom(1_000_000)
        self.assertTrue(self.nb("exec", self.box, "--", "cat", input=data).stdout == data)
        self.nb("exec", self.box, "--", "sh", "-c", "kill -9 $$", code=137)
        self.nb("exec", self.box, "--", "no-such-program-here", code=127)

    def test_mount(self):
        (self.home / "dir" / "f").write_text("here")
        self.mount(f"{self.box}:{self.dir}")
        self.assertEqual(self.run_cmd("cat", f"{self.mnt}/f").stdout, b"here")
        done = self.run_cmd("sh", "-c", f"echo new > {self.mnt}/n && cat {self.mnt}/n")
        self.assertEqual((done.returncode, done.stdout), (0, b"new\n"), done.stderr)
        self.assertEqual((self.home / "dir" / "n").read_text(), "new\n")
        for pid in self.clients():
            os.kill(pid, signal.SIGKILL)
        done = self.run_cmd("sh", "-c", f"echo more >> {self.mnt}/n && cat {self.mnt}/n")
        self.assertEqual((done.returncode, done.stdout), (0, b"new\nmore\n"), done.stderr)
        self.nb("unmount", self.mnt)

    def test_ssh_killed_under_a_command(self):
        """Both ssh processes, of the small and of the bulk connection."""
        self.killed_under_a_command(self.clients)

    def test_sshd_session_killed_under_a_command(self):
        self.killed_under_a_command(self.session_processes)

    def test_uploaded_once(self):
        self.nb("exec", self.box, "--", "true")
        cache = self.home / ".cache" / "nearbox"
        agents = {path.name: path.stat().st_ino for path in cache.iterdir()}
        self.assertEqual(len(agents), 1, agents)
        served = self.processes("nearbox-agent", "serve")
        self.assertEqual(len(served), 1)
        self.assertEqual(self.logs().count("event=agent_upload"), 1)
        env = {**self.env, "XDG_STATE_HOME": str(self.home / "state2")}
        self.nb("exec", self.box, "--", "true", env=env)
        logs = "".join(path.read_text() for path in self.home.glob("state2/nearbox/daemons/*/log"))
        self.assertNotEqual(logs, "")
        self.assertNotIn("event=agent_upload", logs)
        self.assertEqual({path.name: path.stat().st_ino for path in cache.iterdir()}, agents)
        self.assertEqual(self.processes("nearbox-agent", "serve"), served)

    def test_noisy_login(self):
        noise = "i=0; while [ $i -lt 300 ]; do echo 'Welcome to this machine; nearbox is not it.'; i=$((i+1)); done\n"
        self.rc(noise + "printf 'no line end'; echo; echo warning >&2")
        self.assertEqual(self.nb("exec", self.box, "--", "echo", "works").stdout, b"works\n")

    def test_too_noisy_login(self):
        self.rc("while echo 'spam without an end, line after line'; do :; done")
        done = self.nb("exec", self.box, "--connect-timeout", "20", "--", "true", code=125, timeout=60)
        self.assertIn(b"Cannot reach ssh:box", done.stderr)
        self.assertIn(b"prints too much", done.stderr)
        wait_for(lambda: not self.clients(), "no ssh is left", 30)

    def refused(self, host, *texts):
        done = self.nb("mount", f"ssh:{host}", self.mnt, code=8, timeout=60)
        message = done.stderr.decode()
        for text in ("nearbox: ", f"Cannot reach ssh:{host}", *texts):
            self.assertIn(text, message)
        done = self.nb("exec", f"ssh:{host}", "--", "true", code=125, timeout=60)
        self.assertIn(f"Cannot reach ssh:{host}", done.stderr.decode())
        self.assertEqual(nbtest.mounts_below(str(self.home)), [])

    def test_wrong_host(self):
        self.refused("no-such-host.invalid", "no-such-host.invalid", "by hand")

    def test_wrong_key(self):
        (self.ssh_dir / "authorized_keys").write_text("")
        self.refused("box", "Permission denied", "by hand")

    def test_changed_host_key(self):
        other = " ".join((self.ssh_dir / "client.pub").read_text().split()[:2])
        (self.ssh_dir / "known_hosts").write_text(f"[127.0.0.1]:{self.port} {other}\n")
        self.refused("box", "Host key verification failed")

    def test_nobody_listens(self):
        self.sshd.terminate()
        self.sshd.wait(20)
        self.refused("box", "Connection refused")


if __name__ == "__main__":
    nbtest.main()
