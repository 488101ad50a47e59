# SPDX-License-Identifier: Apache-2.0
"""The programs that are measured, each behind a small object with a start and an end."""
import contextlib
import json
import os
import pathlib
import select
import subprocess
import sys
import time

from wan import BenchError, end_process

HERE = pathlib.Path(__file__).resolve().parent
SSH_PORT = 2222  # in the server's own namespace: never taken
START_SECONDS = 30


def wait_for(condition, what, seconds=START_SECONDS):
    limit = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > limit:
            raise BenchError(f"not within {seconds} s: {what}")
        time.sleep(0.005)  # the pause between two looks at a condition with a deadline
    return value


def mounts_below(prefix):
    points = []
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as f:
        for line in f:
            point = line.split()[4].replace("\\040", " ")
            if point == prefix or point.startswith(prefix.rstrip("/") + "/"):
                points.append(point)
    return points


def version_of(*command):
    """The line in which a program says its version, or None."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    text = (done.stdout + done.stderr).strip().splitlines()
    name = os.path.basename(command[0]).lower()
    own = [line for line in text if line.lower().startswith(name)]
    return (own or text)[0][:60] if text else None


class Ssh:
    """An sshd of our own in the server's namespace, and an open connection to it from the client's."""

    def __init__(self, wan, home):
        self.wan = wan
        self.dir = os.path.join(home, "ssh")
        os.mkdir(self.dir, 0o700)
        self.made_run_dir = not os.path.isdir("/run/sshd")
        os.makedirs("/run/sshd", 0o755, exist_ok=True)  # sshd insists on it
        for key in ("host", "user"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "bench", "-f", self.path(key)], check=True)
        self.write("sshd_config", f"""Port {SSH_PORT}
ListenAddress {wan.server.address}
HostKey {self.path("host")}
AuthorizedKeysFile {self.path("user.pub")}
PidFile {self.path("sshd.pid")}
StrictModes no
UsePAM no
PasswordAuthentication no
PermitRootLogin prohibit-password
MaxSessions 64
Subsystem sftp internal-sftp
""")
        host_key = pathlib.Path(self.path("host.pub")).read_text(encoding="utf-8")
        self.write("known_hosts", f"[{wan.server.address}]:{SSH_PORT} {host_key}")
        common = f"""  HostName {wan.server.address}
  Port {SSH_PORT}
  User root
  IdentityFile {self.path("user")}
  IdentitiesOnly yes
  UserKnownHostsFile {self.path("known_hosts")}
  BatchMode yes
"""
        self.write("config", f"""Host peer
{common}  ControlPath {self.path("control")}
Host alone
{common}  ControlPath none
""")
        self.sshd = wan.server.popen("/usr/sbin/sshd", "-D", "-e", "-f", self.path("sshd_config"),
                                     stderr=open(self.path("sshd.log"), "wb"))
        wait_for(self.listening, "sshd listens")
        self.master = wan.client.popen("ssh", "-F", self.path("config"), "-M", "-N", "peer")
        wait_for(lambda: os.path.exists(self.path("control")), "the ssh connection is open")

    def path(self, name):
        return os.path.join(self.dir, name)

    def write(self, name, text):
        with open(self.path(name), "w", encoding="utf-8") as f:
            f.write(text)
        os.chmod(self.path(name), 0o600)

    def listening(self):
        if self.sshd.poll() is not None:
            raise BenchError("sshd ended: " + pathlib.Path(self.path("sshd.log")).read_text(errors="replace")[-1000:])
        done = self.wan.server.run("ssh-keyscan", "-T", "1", "-p", str(SSH_PORT), self.wan.server.address, check=False)
        return bool(done.stdout)

    def command(self, script):
        """Arguments that run a shell script on the server over the open connection."""
        return ["ssh", "-F", self.path("config"), "peer", script]

    def mount(self, remote, point, own_connection=False):
        """Mounts a directory by sshfs with its defaults; returns when it is usable."""
        host = "alone" if own_connection else "peer"
        self.wan.client.run("sshfs", "-o", f"ssh_command=ssh -F {self.path('config')}", f"{host}:{remote}", point)

    def unmount(self, point):
        self.wan.client.run("fusermount3", "-u", point)
        wait_for(lambda: not mounts_below(point), "sshfs is unmounted")

    def rsync(self, remote, target, *options):
        self.wan.client.run("rsync", "-a", *options, "-e", f"ssh -F {self.path('config')}", f"peer:{remote}", target)

    def close(self):
        end_process(self.master)
        end_process(self.sshd)
        if self.made_run_dir:
            with contextlib.suppress(OSError):
                os.rmdir("/run/sshd")


class Rclone:
    """`rclone mount` over SFTP with its defaults; a connection of its own each mount, which it makes by itself."""

    def __init__(self, wan, ssh):
        self.wan = wan
        self.config = ssh.path("rclone.conf")
        ssh.write("rclone.conf", f"""[peer]
type = sftp
host = {wan.server.address}
port = {SSH_PORT}
user = root
key_file = {ssh.path("user")}
known_hosts_file = {ssh.path("known_hosts")}
""")
        self.running = {}

    def mount(self, remote, point, own_connection=True):  # it knows no other
        assert own_connection
        self.running[point] = self.wan.client.popen("rclone", "--config", self.config, "mount", "--read-only",
                                                    f"peer:{remote}", point, stderr=subprocess.DEVNULL)
        wait_for(lambda: mounts_below(point), "rclone has mounted")

    def unmount(self, point):
        self.wan.client.run("fusermount3", "-u", point)
        wait_for(lambda: not mounts_below(point), "rclone is unmounted")
        end_process(self.running.pop(point))

    def close(self):
        for process in self.running.values():
            end_process(process)


class Http:
    """A static file server in the server's namespace."""

    def __init__(self, wan, root):
        self.process = wan.server.popen(sys.executable, str(HERE / "httpfile.py"), wan.server.address, root,
                                        stdout=subprocess.PIPE)
        self.base = f"http://{wan.server.address}:{int(first_line(self.process, 'the file server'))}/"

    def close(self):
        end_process(self.process)


def first_line(process, what):
    if not select.select([process.stdout], [], [], START_SECONDS)[0]:
        raise BenchError(f"{what} says nothing")
    line = process.stdout.readline()
    if not line:
        raise BenchError(f"{what} ended")
    return line


class Nearbox:
    """The embedded server in the server's namespace; the commands and the daemon in the client's.

    States: first() (a new sandbox without agent), attach (an agent, no daemon) and warm (hold() keeps the daemon).
    """

    def __init__(self, wan, home, binaries, data=None):
        self.wan, self.home = wan, os.path.join(home, "nearbox")
        data = data or os.path.join(self.home, "data")  # the server's own files
        self.nearbox = str(binaries / "nearbox")
        self.held = None
        self.sandbox = None
        for name in ("", "state", "run", "config", "data", "held", "empty"):
            os.mkdir(os.path.join(self.home, name), 0o700)
        env = {k: v for k, v in os.environ.items() if not k.startswith(("E2B_", "NEARBOX_", "XDG_"))}
        self.env = dict(env, HOME=self.home, LC_ALL="C.UTF-8", XDG_STATE_HOME=os.path.join(self.home, "state"),
                        XDG_RUNTIME_DIR=os.path.join(self.home, "run"),
                        XDG_CONFIG_HOME=os.path.join(self.home, "config"))
        self.server = wan.server.popen(self.nearbox, "serve", "--listen", f"{wan.server.address}:0", "--data",
                                       data, "--no-isolation", "--json", env=self.env,
                                       stdout=subprocess.PIPE, stderr=open(os.path.join(self.home, "serve.log"), "wb"))
        info = json.loads(first_line(self.server, "nearbox serve"))
        self.env.update(E2B_API_URL=info["api_url"], E2B_SANDBOX_URL=info["sandbox_url"], E2B_API_KEY=info["api_key"])

    def nb(self, *args):
        return self.wan.client.run(self.nearbox, *args, env=self.env, timeout=300)

    def new_sandbox(self):
        """The next mount finds no agent."""
        self.release()
        self.end_sandbox()
        out = self.nb("sandbox", "create", "--timeout", "3600", "--json").stdout
        self.sandbox = json.loads(out.splitlines()[-1])["sandbox_id"]

    def mount(self, remote, point):
        self.nb("mount", f"{self.sandbox}:{remote}", point)

    def unmount(self, point):
        self.nb("unmount", point)
        wait_for(lambda: not mounts_below(point), "nearbox is unmounted")

    def hold(self):
        """Keeps the daemon connected by a mount of an empty directory."""
        if not self.held:
            self.held = os.path.join(self.home, "held")
            self.mount(os.path.join(self.home, "empty"), self.held)

    def release(self):
        """Ends the daemon: its last mount goes."""
        if self.held:
            self.unmount(self.held)
            self.held = None
        self.wait_idle()

    def wait_idle(self):
        wait_for(lambda: not self.daemons(), "the daemon ends after its last mount", 60)

    def daemons(self):
        return self.wan.client.processes_of(self.nearbox)

    def end_sandbox(self):
        if self.sandbox:
            self.nb("sandbox", "kill", self.sandbox)
            self.sandbox = None

    def close(self):
        with contextlib.suppress(BenchError, subprocess.TimeoutExpired):
            self.release()
            self.end_sandbox()
        end_process(self.server, 30)
