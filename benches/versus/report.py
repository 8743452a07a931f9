"""What came out: a table for each scenario, one verdict for each goal, and the same as JSON. Only arithmetic."""

import statistics
from dataclasses import asdict

from contestants import OURS, YARDSTICKS

FIELDS = ("wall", "durable", "cpu", "rss", "origin_cpu", "load")


def medians(runs):
    """The median of every field of a contestant's runs."""
    return {field: statistics.median(getattr(run, field) for run in runs) for field in FIELDS}


def least(runs):
    """The least of every field of a contestant's runs: what it does when the machine leaves it alone."""
    return {field: min(getattr(run, field) for run in runs) for field in FIELDS}


def judge(scenario, results):
    """The goals of a scenario, judged by medians; beside them the same by the best rounds, which noise spoils less."""
    goals = _goals(scenario, {name: medians(runs) for name, runs in results.items()})
    at_best = _goals(scenario, {name: least(runs) for name, runs in results.items()})
    return [{**goal, "at_best": best["got"]} for goal, best in zip(goals, at_best, strict=True)]


def _goals(scenario, middle):
    """What, wanted, got, whether it is enough. Nothing where tierd is missing."""
    ours = middle.get("tierd")
    if not ours:
        return []
    peers = {name: m["durable"] for name, m in middle.items() if name not in (*OURS, *YARDSTICKS)}
    floors = {name: m["durable"] for name, m in middle.items() if name.startswith("floor")}
    goals = []
    if peers:
        best = min(peers, key=peers.get)
        goals.append((f"times the fastest peer ({best})", ">=", scenario.times_peer_min, peers[best] / ours["durable"]))
    if floors:
        best = min(floors, key=floors.get)
        goals.append((f"times the floor ({best})", ">=", scenario.times_floor_min, floors[best] / ours["durable"]))
    goals.append(("CPU s/GiB", "<=", scenario.cpu_max, ours["cpu"] * 1024 / scenario.mib))
    goals.append(("daemon's peak RSS MiB", "<=", scenario.rss_max, ours["rss"]))
    passed = {">=": lambda got, want: got >= want, "<=": lambda got, want: got <= want}
    return [
        {"what": what, "wanted": f"{sign} {want:g}", "got": got, "pass": passed[sign](got, want)}
        for what, sign, want, got in goals
    ]


def table(scenario, results, failed):
    """A scenario's table, fastest first."""
    peers = [medians(runs)["durable"] for name, runs in results.items() if name not in (*OURS, *YARDSTICKS)]
    best = min(peers, default=None)
    lines = [
        "| contestant | exit s | durable s (min-max) | MiB/s | times fastest peer | CPU s/GiB | origin CPU s/GiB "
        "| peak RSS MiB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, runs in sorted(results.items(), key=lambda item: medians(item[1])["durable"]):
        m, ends = medians(runs), [run.durable for run in runs]
        shown = f"**{name}**" if name in OURS else f"*{name}*" if name in YARDSTICKS else name
        times = f"{best / m['durable']:.2f}" if best else "-"
        rss = f"{m['rss']:.0f}" if m["rss"] else "-"
        lines.append(
            f"| {shown} | {m['wall']:.2f} | {m['durable']:.2f} ({min(ends):.2f}-{max(ends):.2f}) "
            f"| {scenario.mib / m['durable']:.0f} | {times} | {m['cpu'] * 1024 / scenario.mib:.2f} "
            f"| {m['origin_cpu'] * 1024 / scenario.mib:.2f} | {rss} |"
        )
    for name, why in failed.items():
        lines.append(f"| {name} | failed: {why.splitlines()[-1][:120] if why else '?'} | | | | | | |")
    return "\n".join(lines)


def verdicts(judged):
    """One table over all scenarios. `judged` is pairs of a scenario and its goals."""
    lines = ["| scenario | goal | wanted | got (median) | best rounds | |", "|---|---|---|---|---|---|"]
    for scenario, goals in judged:
        for goal in goals:
            word = "PASS" if goal["pass"] else "**FAIL**"
            got = f"{goal['got']:.2f} | {goal['at_best']:.2f}"
            lines.append(f"| {scenario.name} | {goal['what']} | {goal['wanted']} | {got} | {word} |")
        if not goals:
            lines.append(f"| {scenario.name} | - | - | not measured | - | **FAIL** |")
    return "\n".join(lines)


def document(scenario, results, failed, goals):
    """A scenario's part of the JSON."""
    return {
        "scenario": asdict(scenario),
        "median": {name: medians(runs) for name, runs in results.items()},
        "runs": {name: [asdict(run) for run in runs] for name, runs in results.items()},
        "failed": failed,
        "goals": goals,
    }
