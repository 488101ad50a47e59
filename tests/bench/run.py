#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Measures nearbox beside its peers over a link of our own; stores every sample; writes docs/benchmarks.md.

    tests/bench/run.py                                   all rows, 50 ms, 1 Gbit/s
    tests/bench/run.py --rows mount-find --tree synthetic-50k --link 150:100 --peer-subset 90

Needs root, openssh-server, sshfs, rclone, rsync, curl, zstd, iproute2, and npm for the tree `app`; unison and lsyncd
are measured where they are installed. Contenders are interleaved: one sample of each a round. docs/benchmarks/ gets
one JSON file a row and link.
"""
import argparse
import datetime
import json
import os
import pathlib
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time

import live_rows
import push_rows
import report
import rows
from peers import version_of
from wan import ROOT, BenchError, Wan, end_by_signals

RESULTS = ROOT / "docs" / "benchmarks"
BINARIES = ROOT / "build" / "release" / "bin"
ROWS = {row.name: row for row in (rows.MountFind, rows.BigRead, rows.Grep, *live_rows.LIVE_ROWS,
                                 *push_rows.PUSH_ROWS)}
MIN_ROUNDS = 5
SCHEMA = 1


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default=",".join(ROWS), help="comma-separated; default: all")
    parser.add_argument("--tree", default="app", choices=("app", "synthetic-50k"))
    parser.add_argument("--link", action="append", help="RTT in ms : rate in Mbit/s; may be repeated; default 50:1000")
    parser.add_argument("--rounds", type=int, default=MIN_ROUNDS)
    parser.add_argument("--warmup", type=int, default=1, help="rounds before that are not counted")
    parser.add_argument("--contenders", help="comma-separated; default: all that are built")
    parser.add_argument("--peer-subset", type=int, default=90, metavar="DIRECTORIES",
                        help="measure sshfs on about that many directories and scale; 0: on the whole tree, which takes minutes a sample")
    parser.add_argument("--cache", help="where trees are kept; default $XDG_CACHE_HOME/nearbox-bench")
    parser.add_argument("--out", type=pathlib.Path, default=RESULTS)
    parser.add_argument("--no-build", action="store_true")
    parser.add_argument("--no-report", action="store_true")
    args = parser.parse_args()
    args.rows = args.rows.split(",")
    if unknown := [r for r in args.rows if r not in ROWS]:
        parser.error(f"no such row: {', '.join(unknown)}; there are {', '.join(ROWS)}")
    args.links = []
    for link in args.link or ["50:1000"]:
        if not re.fullmatch(r"\d+:\d+", link):
            parser.error(f"--link {link}: not RTT:RATE")
        args.links.append(tuple(map(int, link.split(":"))))
    if args.rounds < MIN_ROUNDS:
        print(f"run.py: fewer than {MIN_ROUNDS} rounds: for trying, not for docs/benchmarks.md", file=sys.stderr)
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    args.cache = os.path.abspath(args.cache or os.path.join(base, "nearbox-bench"))
    args.binaries = BINARIES
    return args


def build():
    """The release build. Returns whether the programs themselves are there; the delay tool must be."""
    subprocess.run(["cmake", "--preset", "release", "-DNEARBOX_BENCH=ON"], cwd=ROOT, check=True,
                   stdout=subprocess.DEVNULL)
    subprocess.run(["cmake", "--build", "--preset", "release", "--target", "nearbox-netdelay"], cwd=ROOT, check=True)
    subprocess.run(["cmake", "--build", "--preset", "release"], cwd=ROOT, check=True)


def git(*args):
    return subprocess.run(["git", *args], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


def machine():
    """What the figures depend on; no name of the machine and no path."""
    model = "unknown"
    for line in pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            model = line.split(":", 1)[1].strip()
            break
    total = re.search(r"MemTotal:\s+(\d+)", pathlib.Path("/proc/meminfo").read_text(encoding="utf-8"))
    distribution = re.search(r'PRETTY_NAME="(.*)"', pathlib.Path("/etc/os-release").read_text(encoding="utf-8"))
    return {"cpu": model, "cores": os.cpu_count(), "memory_gb": round(int(total[1]) / 1e6),
            "kernel": platform.release(), "distribution": distribution[1] if distribution else "unknown",
            "architecture": platform.machine()}


def tools():
    programs = {"sshfs": ("sshfs", "--version"), "rclone": ("rclone", "version"), "rsync": ("rsync", "--version"),
                "unison": ("unison", "-version"), "lsyncd": ("lsyncd", "--version"), "ssh": ("ssh", "-V"), "curl": ("curl", "--version"),
                "zstd": ("zstd", "--version"), "find": ("find", "--version")}
    found = {name: version_of(*command) for name, command in programs.items()}
    if (BINARIES / "nearbox").exists():
        found["nearbox"] = version_of(str(BINARIES / "nearbox"), "--version")
    return {name: version for name, version in found.items() if version}


def run_row(row_class, context, args):
    """Runs one row; returns its record without what is common to all."""
    row = row_class(context)
    contenders = row.contenders(context)
    if args.contenders:
        contenders = [c for c in contenders if c.name in args.contenders.split(",")]
    if not (args.binaries / "nearbox").exists():
        print("nearbox is not built: only its peers are measured", flush=True)
        contenders = [c for c in contenders if not c.name.startswith("nearbox")]
    samples = {c.name: [] for c in contenders}
    print(f"== {row.title} ({row.tree['name']}): {', '.join(samples)}", flush=True)
    prepared = []
    try:
        for contender in contenders:
            prepared.append(contender)
            contender.prepare()
        load = os.getloadavg()[0]
        before = context.wan.counters()
        for number in range(args.warmup + args.rounds):
            for contender in contenders:
                parts = {k: round(v, 6) for k, v in contender.sample(number).items()}
                counted = number >= args.warmup
                if counted:
                    samples[contender.name].append(parts)
                print(f"   {'round ' + str(number - args.warmup + 1) if counted else 'warm-up'} {contender.name}: "
                      f"{report.number(parts[row.key])} {row.unit}", flush=True)
        carried = context.wan.stats(before)
    finally:
        for contender in reversed(prepared):
            contender.finish()
    return {"row": row.name, "title": row.title, "method": row.method, "tree": row.tree, "reference": row.reference,
            "goals": row.goals, "key": row.key, "unit": row.unit, "rounds": args.rounds, "warmup_rounds": args.warmup,
            "load_before": round(load, 2), "line_during": carried,
            "contenders": [{"name": c.name, "label": c.label, **c.extra, "samples": samples[c.name]}
                           for c in contenders]}


def run_link(rtt, rate, args, common):
    home = tempfile.mkdtemp(prefix="nbb-")
    try:
        with Wan(rtt, rate) as wan:
            link = wan.measure()
            print(f"link: {link['rtt_ms']['median']} ms, {link['line_rate_mbit']} Mbit/s "
                  f"(one connection {link['one_connection_mbit']})", flush=True)
            with rows.Context(wan, home, args.cache, args) as context:
                for name in args.rows:
                    record = run_row(ROWS[name], context, args)
                    store(args.out, f"{name}-{record['tree']['name']}-{rtt}ms-{rate}mbit",
                          {**common, "link": link, **record})
    finally:
        rows.remove_home(home)


def store(out, name, record):
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{name}-{record['date'][:10]}-{record['commit']}.json"
    new = path.with_suffix(".new")
    new.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    new.rename(path)
    print(f"stored {path.name}", flush=True)


def main():
    args = parse_args()
    end_by_signals()
    try:
        for program in ("ip", "nsenter", "ssh", "sshfs", "rclone", "rsync", "curl", "zstd", "find"):
            if not shutil.which(program):
                raise BenchError(f"{program} is missing")
        if not args.no_build:
            build()
        os.makedirs(args.cache, exist_ok=True)
        common = {"schema": SCHEMA, "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
                  "commit": git("rev-parse", "--short=10", "HEAD"),
                  "modified": bool(git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!docs")),
                  "build": "release", "machine": machine(), "tools": tools()}
        start = time.monotonic()
        for rtt, rate in args.links:
            run_link(rtt, rate, args, common)
        print(f"all in {time.monotonic() - start:.0f} s", flush=True)
        if not args.no_report:
            report.write(args.out)
    except BenchError as e:
        sys.exit(f"run.py: {e}")
    except subprocess.CalledProcessError as e:
        sys.exit(f"run.py: {e.cmd[0]} ended with {e.returncode}")


if __name__ == "__main__":
    main()
