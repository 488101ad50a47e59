#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes docs/benchmarks.md and its plots from the stored samples in docs/benchmarks/*.json. No figure of a table is
typed in; docs/benchmarks/ROW.md, where there is one, says what a profile showed of a row and stands below it.

    tests/bench/report.py [DIRECTORY]
"""
import html
import json
import math
import pathlib
import statistics
import sys

WIDTH, LEFT, RIGHT, BAR, GAP, TOP = 820, 250, 110, 22, 14, 44
SMALLEST = 1e-6  # what a logarithmic scale shows of nothing


def load(directory):
    """The newest record of each row, tree and link, in a stable order."""
    newest = {}
    for path in sorted(directory.glob("*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        asked = record["link"]["asked"]
        key = (record["row"], record["tree"]["name"], asked["rtt_ms"], asked["rate_mbit"])
        if key not in newest or newest[key][1]["date"] < record["date"]:
            newest[key] = (path, record)
    return [newest[key] for key in sorted(newest)]


def main_of(record):
    """What a sample's main value is called, and its unit; the first records were all of seconds."""
    return record.get("key", "seconds"), record.get("unit", "s")


def values_of(contender, part):
    return [s[part] for s in contender["samples"] if part in s]


def ratio(record, name, reference):
    """Median over the rounds of name ÷ reference: both of a round met the same machine. None: not measured."""
    found = {c["name"]: values_of(c, main_of(record)[0]) for c in record["contenders"]}
    if not found.get(name) or not found.get(reference):
        return None
    if not all(found[reference]):
        return None
    return statistics.median(a / b for a, b in zip(found[name], found[reference]))


def number(value):
    if value is None:
        return ""
    if value == 0:
        return "0"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:.{digits}f}"


def goal_lines(record):
    lines = []
    for name, reference, limit, kind in record["goals"]:
        value = ratio(record, name, reference)
        if value is None:
            lines.append(f"Goal: {name} ÷ {reference} at {kind} {number(limit)}: not measured.")
            continue
        reached = value <= limit if kind == "most" else value >= limit
        lines.append(f"Goal: {name} ÷ {reference} at {kind} {number(limit)}: **{number(value)}**, "
                     f"{'reached' if reached else 'not reached'}.")
    return lines


def describe_link(link):
    return (f"{link['rtt_ms']['median']:.1f} ms RTT and {link['line_rate_mbit']:.0f} Mbit/s measured "
            f"(asked: {link['asked']['rtt_ms']} ms, {link['asked']['rate_mbit']} Mbit/s; queue {link['queue_bytes']} bytes; one TCP "
            f"connection with this machine's settings, {link['tcp_congestion_control']}: {link['one_connection_mbit']:.0f} Mbit/s)")


def describe_tree(tree):
    if "directories" in tree:
        return (f"`{tree['name']}`: {tree['files']} files, {tree['directories']} directories, {tree['symlinks']} symlinks, "
                f"{tree['bytes'] / 1e6:.0f} MB, digest {tree['digest']}")
    each = f" of {tree['bytes_each'] / 1e6:.0f} MB" if "bytes_each" in tree else ""
    return f"`{tree['name']}`: {tree['files']} files{each}"


def table(record):
    key, unit = main_of(record)
    parts = sorted({k for c in record["contenders"] for s in c["samples"] for k in s} - {key})
    in_unit = " s" if unit == "s" else ""
    head = ["", f"median {unit}", "min", "max", "n", f"÷ {record['reference']}", "÷ fastest nearbox",
            *(p if " " in p else f"{p}{in_unit}" for p in parts)]
    ours = [c for c in record["contenders"] if c["name"].startswith("nearbox") and c["samples"]]
    best = min(ours, key=lambda c: statistics.median(values_of(c, key)))["name"] if ours else None
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    notes = []
    for c in record["contenders"]:
        values = values_of(c, key)
        if not values:
            continue
        label = c["label"]
        if c.get("scaled"):
            label += " (scaled)"
            notes.append(f"{c['label']}: {c['scaled']['method']}.")
        cells = [label, number(statistics.median(values)), number(min(values)), number(max(values)), str(len(values)),
                 number(ratio(record, c["name"], record["reference"])),
                 number(ratio(record, c["name"], best)) if best else ""]
        cells += [number(statistics.median(values_of(c, p))) if values_of(c, p) else "" for p in parts]
        lines.append("| " + " | ".join(cells) + " |")
    return lines, notes


def section(path, record, plot):
    machine = record["machine"]
    rows, notes = table(record)
    way = record["line_during"]["b_to_a"]
    lines = [f"## {record['title']}: `{record['tree']['name']}`, {record['link']['asked']['rtt_ms']} ms, "
             f"{record['link']['asked']['rate_mbit']} Mbit/s", "", *rows, "", *goal_lines(record), "", f"![samples]({plot})", ""]
    lines += [f"* How: {record['method']}"]
    lines += [f"* {note}" for note in notes]
    lines += [f"* Tree: {describe_tree(record['tree'])}.",
              f"* Link: {describe_link(record['link'])}. Lateness of the delay tool while it was measured: "
              f"99 % below {way['late_p99_us']} µs, worst below {way['late_max_us']} µs.",
              f"* Commit {record['commit']}{' with local changes' if record['modified'] else ''}, {record['build']} build, "
              f"{record['date']}; {machine['cpu']}, {machine['cores']} cores, {machine['memory_gb']} GB, Linux {machine['kernel']}, "
              f"{machine['distribution']}; load before: {record['load_before']}.",
              "* " + "; ".join(f"{k}: {v}" for k, v in record["tools"].items()) + ".",
              f"* Samples: [{path.name}](benchmarks/{path.name})", ""]
    profile = path.parent / f"{record['row']}.md"
    if profile.exists():
        lines += [profile.read_text(encoding="utf-8").strip(), ""]
    return lines


def plot(record):
    """An SVG: a bar a contender at its median, a dot a sample, on a logarithmic scale."""
    key, unit = main_of(record)
    shown = [c for c in record["contenders"] if c["samples"]]
    values = [max(v, SMALLEST) for c in shown for v in values_of(c, key)]
    low = 10 ** math.floor(math.log10(min(values)) - 0.15)
    high = 10 ** math.ceil(math.log10(max(values)) + 0.05)
    span = math.log10(high / low)

    def x(value):
        value = max(value, SMALLEST)
        return LEFT + (WIDTH - LEFT - RIGHT) * math.log10(value / low) / span

    bottom = TOP + len(shown) * (BAR + GAP)
    asked = record["link"]["asked"]
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {bottom + 34}" font-family="sans-serif" font-size="13">',
           f'<rect width="{WIDTH}" height="{bottom + 34}" fill="#ffffff"/>',
           f'<text x="12" y="24" font-size="15">{html.escape(record["title"].replace("`", ""))} '
           f'({html.escape(record["tree"]["name"])}, {asked["rtt_ms"]} ms, {asked["rate_mbit"]} Mbit/s)</text>']
    for exponent in range(round(math.log10(low)), round(math.log10(high)) + 1):
        at = x(10.0 ** exponent)
        out.append(f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{TOP - 8}" y2="{bottom}" stroke="#dddddd"/>')
        out.append(f'<text x="{at:.1f}" y="{bottom + 18}" text-anchor="middle" fill="#555555">{10.0 ** exponent:g} {unit}</text>')
    for i, c in enumerate(shown):
        y = TOP + i * (BAR + GAP)
        median = statistics.median(values_of(c, key))
        fill = "#3b7dd8" if c["name"].startswith("nearbox") else "#a9b4c0"
        label = c["label"].replace("\\|", "|") + (" (scaled)" if c.get("scaled") else "")
        out.append(f'<text x="{LEFT - 8}" y="{y + 16}" text-anchor="end">{html.escape(label)}</text>')
        out.append(f'<rect x="{LEFT}" y="{y}" width="{x(median) - LEFT:.1f}" height="{BAR}" fill="{fill}"/>')
        for v in values_of(c, key):
            out.append(f'<circle cx="{x(v):.1f}" cy="{y + BAR / 2}" r="3" fill="none" stroke="#1c2733"/>')
        out.append(f'<text x="{max(map(x, values_of(c, key))) + 8:.1f}" y="{y + 16}">{number(median)} {unit}</text>')
    return "\n".join([*out, "</svg>", ""])


def write(directory):
    records = load(directory)
    lines = ["# Benchmarks", "",
             "Written by `tests/bench/report.py` from the samples in [benchmarks/](benchmarks/); do not edit. To measure again, as root:",
             "", "```sh", "tests/bench/run.py", "```", "",
             "Every figure is of one run on one machine whose link is made by `nearbox-netdelay` (delay, rate and queue between two network "
             "namespaces). Contenders take turns, one sample each a round; a ratio is the median over the rounds of the "
             "two values of the same round. Compare ratios, not seconds: machines differ and are noisy.", ""]
    wanted = set()
    for path, record in records:
        name = path.with_suffix(".svg").name
        wanted.add(name)
        (directory / name).write_text(plot(record), encoding="utf-8")
        lines += section(path, record, f"benchmarks/{name}")
    if not records:
        lines += ["Nothing has been measured yet.", ""]
    for old in directory.glob("*.svg"):
        if old.name not in wanted:
            old.unlink()  # the plot of a record that a newer one replaced
    target = directory.parent / "benchmarks.md"
    target.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")
    print(f"wrote {target.name}: {len(records)} sections")


if __name__ == "__main__":
    write(pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else pathlib.Path(__file__).resolve().parents[2] / "docs" / "benchmarks")
