#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A wide-area link on one machine: two network namespaces joined by nearbox-netdelay.

    tests/bench/wan.py [--rtt-ms 50] [--rate-mbit 1000] [-- COMMAND…]

measures the link, prints what it is as JSON, and runs COMMAND in the client's namespace (WAN_SERVER
is the server's address, WAN_SERVER_NET what nsenter --net= takes). Needs root.

The namespaces have no name and no file: they are held by the delay tool's descriptors, which ends with
our end of its stdin. So nothing stays behind, whatever ends this program; close() also ends every
process that is left in them.
"""
import argparse
import contextlib
import ctypes
import json
import os
import pathlib
import select
import signal
import socket
import statistics
import struct
import subprocess
import sys
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
NETDELAY = ROOT / "build" / "release" / "bin" / "nearbox-netdelay"
READY_SECONDS = 20
PING_COUNT = 21
# Beyond the machine's limits on sockets, so that the line is measured and not they. Source: linux asm-generic/socket.h
SO_SNDBUFFORCE, SO_RCVBUFFORCE, FORCED_BUFFER = 32, 33, 32 << 20
CLONE_NEWNET = 0x40000000
PR_SET_PDEATHSIG = 1
LIBC = ctypes.CDLL(None, use_errno=True)


class BenchError(Exception):
    """Something the bench needs is missing or went wrong; its text is for a person."""


def end_by_signals():
    """Turns the signals that end programs into SystemExit, so that every finally and with runs."""

    def leave(number, _frame):
        # Once: a second signal must not interrupt the cleaning.
        for s in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            signal.signal(s, signal.SIG_IGN)
        raise SystemExit(128 + number)

    for s in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(s, leave)


def die_with_parent():
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


def end_process(process, seconds=10):
    """Ends one process that we started: asks, then kills."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe:
            with contextlib.suppress(OSError):
                pipe.close()


def quantile_of_log2(counts, share):
    """The upper bound of the bucket that holds the quantile; bucket i counts values below 2**i."""
    seen, total = 0, sum(counts)
    for i, n in enumerate(counts):
        seen += n
        if total and seen >= share * total:
            return 2 ** i
    return 0


class End:
    """One end of the link: where commands run."""

    def __init__(self, wan, name, net, address, peer):
        self.wan, self.name, self.net, self.address, self.peer = wan, name, net, address, peer
        self.inode = os.stat(net).st_ino

    def command(self, args):
        return ["nsenter", f"--net={self.net}", "--", *map(str, args)]

    def popen(self, *args, **kw):
        kw.setdefault("stdin", subprocess.DEVNULL)
        process = subprocess.Popen(self.command(args), preexec_fn=die_with_parent, **kw)
        self.wan.started.append(process)
        return process

    def run(self, *args, timeout=600, check=True, **kw):
        """Runs a command to its end; returns it finished, with stdout and stderr unless redirected."""
        kw.setdefault("stdin", subprocess.DEVNULL)
        kw.setdefault("stdout", subprocess.PIPE)
        kw.setdefault("stderr", subprocess.PIPE)
        done = subprocess.run(self.command(args), timeout=timeout, check=False, preexec_fn=die_with_parent, **kw)
        if check and done.returncode != 0:
            text = (done.stderr or b"")[-2000:]
            text = text.decode(errors="replace") if isinstance(text, bytes) else text
            raise BenchError(f"{args[0]} ended with {done.returncode} in the {self.name}'s namespace: {text}")
        return done

    def inside(self, function):
        """Calls function() in a thread that is in this namespace; a socket it makes stays there."""
        box = []

        def body():
            try:
                with open(self.net, "rb") as f:
                    if LIBC.setns(f.fileno(), CLONE_NEWNET) != 0:
                        raise OSError(ctypes.get_errno(), f"enter the {self.name}'s namespace")
                box.append((function(), None))
            except BaseException as e:  # handed to the caller
                box.append((None, e))

        thread = threading.Thread(target=body)
        thread.start()
        thread.join()
        value, error = box[0]
        if error:
            raise error
        return value

    def processes(self):
        """Pids of all processes in this namespace, but the delay tool's own."""
        found = []
        for entry in os.listdir("/proc"):
            if entry.isdigit() and int(entry) not in (os.getpid(), self.wan.process.pid):
                with contextlib.suppress(OSError):
                    if os.stat(f"/proc/{entry}/ns/net").st_ino == self.inode:
                        found.append(int(entry))
        return found


    def processes_of(self, program):
        """Pids of the processes in this namespace that run that program."""
        found = []
        for pid in self.processes():
            with contextlib.suppress(OSError):
                if os.readlink(f"/proc/{pid}/exe") == program:
                    found.append(pid)
        return found


class Wan:
    """The link. Use as a context; `client` and `server` are its ends."""

    def __init__(self, rtt_ms=50, rate_mbit=1000, queue_bytes=None, tool=NETDELAY):
        if os.geteuid() != 0:
            raise BenchError("the bench makes network namespaces and mounts: run it as root")
        if not pathlib.Path(tool).exists():
            raise BenchError("nearbox-netdelay is not built: cmake --preset release -DNEARBOX_BENCH=ON && "
                             "cmake --build --preset release --target nearbox-netdelay")
        self.asked = {"rtt_ms": rtt_ms, "rate_mbit": rate_mbit}
        self.started = []
        args = [str(tool), "--rtt-ms", str(rtt_ms), "--rate-mbit", str(rate_mbit)]
        if queue_bytes is not None:
            args += ["--queue-bytes", str(queue_bytes)]
        self.process = subprocess.Popen(args, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        try:
            self.ready = json.loads(self._line())
            self.client = End(self, "client", self.ready["net_a"], "10.87.0.1", "10.87.0.2")
            self.server = End(self, "server", self.ready["net_b"], "10.87.0.2", "10.87.0.1")
            for end in (self.client, self.server):
                self._configure(end)
        except BaseException:
            self.close()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def _line(self):
        if not select.select([self.process.stdout], [], [], READY_SECONDS)[0]:
            raise BenchError("nearbox-netdelay says nothing")
        line = self.process.stdout.readline()
        if not line:
            raise BenchError("nearbox-netdelay ended; its reason is above")
        return line

    def _configure(self, end):
        device = self.ready["device"]

        def settings():
            # No router solicitations and the like on the line.
            with contextlib.suppress(OSError):
                pathlib.Path("/proc/sys/net/ipv6/conf/all/disable_ipv6").write_text("1")

        end.inside(settings)
        for args in (["link", "set", "lo", "up"],
                     ["address", "add", f"{end.address}/32", "peer", end.peer, "dev", device],
                     # The tool's queue is the router's: the device itself must not drop.
                     ["link", "set", device, "mtu", "1500", "txqueuelen", "10000", "up"]):
            end.run("ip", *args)

    # ---- switches

    def toggle_cut(self):
        """Cuts the line (everything on it is lost), or joins it again."""
        self.process.send_signal(signal.SIGUSR1)

    def toggle_stall(self):
        """Holds everything on the line, or lets it go on."""
        self.process.send_signal(signal.SIGUSR2)

    # ---- what the line really is

    def counters(self):
        self.process.stdin.write(b"stats\n")
        self.process.stdin.flush()
        return json.loads(self._line())

    def stats(self, since=None):
        """What the line carried since those counters (or ever), and how late in µs: upper bounds of quantiles."""
        now = self.counters()
        out = {"realtime": now["realtime"]}
        for name in ("a_to_b", "b_to_a"):
            before = since[name] if since else {}
            way = {key: value - before.get(key, 0) for key, value in now[name].items() if isinstance(value, int)}
            del way["late_max_us"]
            counts = now[name]["late_log2_us"]
            counts = [n - m for n, m in zip(counts, before.get("late_log2_us", [0] * len(counts)))]
            for label, share in (("p50", 0.5), ("p99", 0.99), ("p999", 0.999), ("max", 1.0)):
                way[f"late_{label}_us"] = quantile_of_log2(counts, share)
            out[name] = way
        return out

    def ping(self, count=PING_COUNT):
        """Round trip times in ms, by ICMP echo from client to server."""
        sock = self.client.inside(lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP))
        times = []
        with sock:
            sock.settimeout(5)
            sock.connect((self.server.address, 0))
            for sequence in range(count):
                packet = struct.pack("!BBHHH", 8, 0, 0, os.getpid() & 0xFFFF, sequence) + b"nearbox!" * 4
                total = sum(struct.unpack(f"!{len(packet) // 2}H", packet))
                total = (total >> 16) + (total & 0xFFFF)
                packet = packet[:2] + struct.pack("!H", ~(total + (total >> 16)) & 0xFFFF) + packet[4:]
                start = time.monotonic()
                sock.send(packet)
                while True:
                    answer = sock.recv(2048)
                    body = answer[(answer[0] & 15) * 4:]
                    if body[0] == 0 and body[6:8] == packet[6:8]:
                        break
                times.append((time.monotonic() - start) * 1000)
        return times

    def tcp_rate(self, connections, forced_buffers, seconds=None):
        """Payload rate in Mbit/s from server to client, once the connections have started up.

        One connection with this machine's socket buffers is what a program gets; several with large ones
        show what the line gives.
        """
        seconds = seconds or max(4.0, self.asked["rtt_ms"] / 1000 * 40)
        listener = self.server.inside(lambda: socket.create_server((self.server.address, 0)))
        sockets = self.client.inside(lambda: [socket.socket() for _ in range(connections)])
        if forced_buffers:
            listener.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, FORCED_BUFFER)
            for sock in sockets:
                sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, FORCED_BUFFER)
        start = time.monotonic()
        counted = [0] * connections

        def send(connection):
            block = bytes(1 << 20)
            with contextlib.suppress(OSError), connection:
                while time.monotonic() < start + seconds:
                    connection.sendall(block)

        def receive(index, sock):
            buffer = bytearray(1 << 20)
            while (now := time.monotonic()) < start + seconds:
                got = sock.recv_into(buffer)
                if not got:
                    return
                if now > start + seconds / 2:
                    counted[index] += got

        threads = []
        with listener:
            for index, sock in enumerate(sockets):
                sock.settimeout(10)
                sock.connect(listener.getsockname())
                peer = listener.accept()[0]
                peer.settimeout(10)
                threads.append(threading.Thread(target=send, args=(peer,), daemon=True))
                threads.append(threading.Thread(target=receive, args=(index, sock), daemon=True))
            for thread in threads:
                thread.start()
            for thread in threads[1::2]:
                thread.join(seconds + 20)
        for sock in sockets:
            sock.close()
        for thread in threads:
            thread.join(20)
        return sum(counted) * 8 / (seconds / 2) / 1e6

    def measure(self):
        """What stands beside every result."""
        times = self.ping()
        setting = self.client.inside(lambda: {
            name: pathlib.Path(f"/proc/sys/net/ipv4/{name}").read_text().strip().replace("\t", " ")
            for name in ("tcp_congestion_control", "tcp_rmem", "tcp_wmem")})
        return {"asked": self.asked, "queue_bytes": self.ready["queue_bytes"], "mtu": 1500,
                "rtt_ms": {"median": round(statistics.median(times), 3), "min": round(min(times), 3),
                           "max": round(max(times), 3), "samples": len(times)},
                "line_rate_mbit": round(self.tcp_rate(4, True), 1),
                "one_connection_mbit": round(self.tcp_rate(1, False), 1), **setting}

    # ---- the end

    def close(self):
        for process in reversed(self.started):
            end_process(process)
        self.started = []
        ends = [e for e in (getattr(self, "client", None), getattr(self, "server", None)) if e]
        for sig in (signal.SIGTERM, signal.SIGKILL):
            # All that is in our own namespaces was started by us: daemons too.
            limit = time.monotonic() + 10
            for pid in [p for e in ends for p in e.processes()]:
                with contextlib.suppress(OSError):
                    os.kill(pid, sig)
            while time.monotonic() < limit and any(e.processes() for e in ends):
                time.sleep(0.02)
        end_process(self.process)


def main():
    parser = argparse.ArgumentParser(description="A wide-area link on one machine")
    parser.add_argument("--rtt-ms", type=int, default=50)
    parser.add_argument("--rate-mbit", type=int, default=1000)
    parser.add_argument("--queue-bytes", type=int)
    parser.add_argument("--no-measure", action="store_true")
    parser.add_argument("command", nargs="*")
    args = parser.parse_args()
    end_by_signals()
    try:
        with Wan(args.rtt_ms, args.rate_mbit, args.queue_bytes) as wan:
            if not args.no_measure:
                print(json.dumps(wan.measure()), flush=True)
            if args.command:
                env = dict(os.environ, WAN_SERVER=wan.server.address, WAN_SERVER_NET=wan.server.net)
                return wan.client.popen(*args.command, env=env, stdin=None).wait()
            print(json.dumps(wan.stats()), flush=True)
            return 0
    except BenchError as e:
        sys.exit(f"wan.py: {e}")


if __name__ == "__main__":
    sys.exit(main())
