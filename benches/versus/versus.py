#!/usr/bin/env python3
"""Compares tierd with aria2c, curl, s5cmd, rclone and hf_transfer: the same files from the same origin to the same disk.

Nothing leaves the machine. Origins serve from memory. Contestants take turns in shuffled rounds, so that a slow spell of
the machine meets them all; each starts after a pause, into an empty folder; in its first round every file is compared
with what was uploaded. `setup.sh` installs what is needed, `cargo build --release` builds tierd.
"""

import argparse
import datetime
import hashlib
import json
import os
import platform
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import contestants
import report
from contestants import Course, Failed, write_config
from origins import FOLDER, Origin
from scenarios import SCENARIOS

REPOSITORY = Path(__file__).resolve().parents[2]
ROUNDS = 5
CHUNK = 8 << 20
# Bytes of a file's header, and most bytes of one of its tensors.
HEADER, TENSOR = 64 << 10, 64 << 20


def arguments():
    """The command line."""
    names = [scenario.name for scenario in SCENARIOS]
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--scenario", action="append", choices=names, help="only this one; may be given several times")
    p.add_argument("--rounds", type=int, help=f"default {ROUNDS}, or 2 with --quick")
    p.add_argument("--quick", action="store_true", help="a quarter of every size: to see that it works, not to judge by")
    p.add_argument("--json", type=Path, metavar="FILE", help="write every run there")
    p.add_argument("--only", default="", metavar="A,B", help="only these contestants")
    p.add_argument("--settle", type=float, default=2, metavar="S",
                   help="pause before each run (2): a virtual machine may have to get freed memory back from its host, "
                        "and all contestants should start alike")  # fmt: skip
    temporary = Path(tempfile.gettempdir())
    p.add_argument("--tools", type=Path, default=temporary / "tierd-versus", metavar="DIR", help="what setup.sh made")
    p.add_argument("--disk", type=Path, metavar="DIR", help="folder on the disk under test; default: in --tools")
    p.add_argument("--ram", type=Path, default=Path("/dev/shm/tierd-versus"), metavar="DIR", help="the origins' data")
    p.add_argument("--tierd", type=Path, default=REPOSITORY / "target/release/tierd", metavar="FILE")
    a = p.parse_args()
    a.rounds = a.rounds or (2 if a.quick else ROUNDS)
    a.disk = a.disk or a.tools / "disk"
    for needed, how in ((a.tierd, "cargo build --release"), (a.tools / "bin/floor", f"setup.sh {a.tools}")):
        if not needed.is_file():
            p.error(f"{needed} is missing: {how}")
    return a


def make_files(at, sizes):
    """Makes safetensors files of exactly these sizes (MiB): random bytes below a true header. Returns their SHA-256."""
    at.mkdir(parents=True)
    digests = {}
    for n, size in enumerate(sizes):
        room, tensors = (size << 20) - HEADER, {}
        for begin in range(0, room, TENSOR):
            end = min(begin + TENSOR, room)
            tensors[f"t{begin // TENSOR}"] = {"dtype": "U8", "shape": [end - begin], "data_offsets": [begin, end]}
        header = json.dumps(tensors).encode().ljust(HEADER - 8)
        name, digest = f"model-{n:02}.safetensors", hashlib.sha256()
        with open(at / name, "wb") as file:
            parts = [len(header).to_bytes(8, "little") + header]
            while parts:
                file.write(parts[0])
                digest.update(parts.pop())
                if room:
                    parts = [os.urandom(min(room, CHUNK))]
                    room -= len(parts[0])
        digests[name] = digest.hexdigest()
    return digests


def fill(a, origin, work):
    """Uploads the load with `tierd push`, so that the origin has a manifest with digests. Returns the SHA-256s."""
    load = a.disk / "load"
    digests = make_files(load / FOLDER, origin.scenario.sizes)
    config = write_config(work / "push.toml", work / "push", origin.tierd_origin(filling=True))
    push = [a.tierd, "--config", config, "--quiet", "push", load, "--origin", "bench"]
    subprocess.run(push, check=True, env=contestants.environment(a.tools))
    shutil.rmtree(load)
    return digests


def differing(course, contestant, digests):
    """The first file that a contestant got wrong, or nothing."""
    for name, wanted in digests.items():
        try:
            with open(course.file(contestant, name), "rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != wanted:
                    return f"{name} differs"
        except OSError as error:
            return str(error)
    return ""


def one_run(a, course, name):
    """Clears the folder, rests, runs one contestant. What its daemon needs is done before the rest."""
    shutil.rmtree(course.dest, ignore_errors=True)
    course.dest.mkdir(parents=True)
    os.sync()
    daemon = course.prepare(name)
    try:
        time.sleep(a.settle)
        before, load = course.origin.cpu(), os.getloadavg()[0]
        run = course.run(name, daemon)
        run.origin_cpu, run.load = course.origin.cpu() - before, load
        return run
    finally:
        if daemon:
            daemon.stop()


def rounds(a, course, field, digests):
    """All runs of a scenario: by contestant, and why some failed."""
    results, failed = {}, {}
    for number in range(a.rounds):
        turn = [name for name in field if name not in failed]
        random.Random(f"{course.origin.scenario.name} {number}").shuffle(turn)
        for name in turn:
            try:
                run = one_run(a, course, name)
                wrong = name != "disk" and number == 0 and differing(course, name, digests)
                if wrong:
                    raise Failed(wrong)
            except Failed as why:
                failed[name] = str(why)
                results.pop(name, None)
                print(f"  {name} failed: {why}", file=sys.stderr)
                continue
            results.setdefault(name, []).append(run)
            told = f"{run.wall:.2f} s, durable {run.durable:.2f} s, CPU {run.cpu:.2f} s, load {run.load:.1f}"
            print(f"  round {number + 1} {name}: {told}", file=sys.stderr)
    return results, failed


def measure(a, scenario):
    """One scenario from an empty origin to its results."""
    work = a.disk / "work"
    for folder in (work, a.ram, a.disk / "dest", a.disk / "load"):
        shutil.rmtree(folder, ignore_errors=True)
    work.mkdir(parents=True)
    origin = Origin(scenario, a.tools, work, a.ram)
    try:
        print(f"{scenario.name}: filling the origin with {scenario.mib} MiB", file=sys.stderr)
        digests = fill(a, origin, work)
        field = [*contestants.OURS, *scenario.contestants]
        if a.only:
            field = [name for name in field if name in a.only.split(",")]
        course = Course(origin, a.tools, a.tierd, work, a.disk / "dest", list(digests))
        return rounds(a, course, field, digests)
    finally:
        origin.stop()
        for folder in (a.ram, a.disk / "dest", a.disk / "load"):
            shutil.rmtree(folder, ignore_errors=True)


def machine(a):
    """In words, what this ran on."""
    model = next((line.split(":", 1)[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), "?")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 30
    a.disk.mkdir(parents=True, exist_ok=True)
    kind = subprocess.run(["stat", "-f", "-c", "%T", a.disk], capture_output=True, text=True, check=True).stdout.strip()
    if kind == "tmpfs":
        print(f"warning: {a.disk} is in memory; name a folder on a disk with --disk", file=sys.stderr)
    return f"{os.cpu_count()} x {model}, {memory} GiB, Linux {platform.release()}, {kind}"


def main():
    """Measures, prints, and exits with 1 if a goal was missed."""
    a = arguments()
    os.umask(0o022)
    version = subprocess.run([a.tierd, "--version"], capture_output=True, text=True, check=True).stdout.strip()
    head = {
        "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "machine": machine(a),
        "tierd": version,
        "rounds": a.rounds,
        "quick": a.quick,
        "scenarios": {},
    }
    print(f"{head['machine']}; {version}; {a.rounds} rounds{', quick' if a.quick else ''}")
    judged = []
    for scenario in SCENARIOS:
        if a.scenario and scenario.name not in a.scenario:
            continue
        scenario = scenario.quick() if a.quick else scenario
        try:
            results, failed = measure(a, scenario)
        except RuntimeError as why:
            results, failed = {}, {"all": str(why)}
            print(f"{scenario.name}: {why}", file=sys.stderr)
        goals = report.judge(scenario, results)
        judged.append((scenario, goals))
        loads = [run.load for runs in results.values() for run in runs]
        print(f"\n### {scenario.name}: {scenario.about}\n\n{scenario.mib} MiB in {len(scenario.sizes)} files; load of the "
              f"machine {min(loads, default=0):.1f} to {max(loads, default=0):.1f}\n")  # fmt: skip
        print(report.table(scenario, results, failed), flush=True)
        head["scenarios"][scenario.name] = report.document(scenario, results, failed, goals)
        if a.json:
            a.json.write_text(json.dumps(head, indent=1))
    print(f"\n### Goals{' (quick: sizes too small to judge by)' if a.quick else ''}\n\n{report.verdicts(judged)}")
    sys.exit(not all(goals and all(goal["pass"] for goal in goals) for _, goals in judged))


if __name__ == "__main__":
    main()
