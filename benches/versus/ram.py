#!/usr/bin/env python3
"""Measures tierd's RAM tier: how fast a file is locked in memory from cold, from resident, and on its way from an origin.

The others read or hold the very same file: `vmtouch`, `dd`, fio and one MADV_POPULATE_READ. They take turns in shuffled
rounds; before each turn the file's pages are dropped and the kernel is asked whether they are gone. Yardsticks are timed
by their own clock where they have one, tierd from the start to the end of `tierd ensure`. Nothing leaves the machine.
"""

import argparse
import contextlib
import ctypes
import datetime
import json
import mmap
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from contestants import Daemon, Failed, environment, write_config
from origins import FOLDER, Origin
from scenarios import Scenario
from versus import REPOSITORY, machine, make_files

ROUNDS, GIB, RUN_S, STOP_S, PAUSE_S = 3, 4, 120, 30, 0.05
# From resident to locked takes milliseconds, so it is done more often.
RELOCKS = 3
# Dropping is asked again while pages wait in the kernel's batches.
DROPS = 50
# Of a file's pages: fewer than this are as good as none, more than its complement as good as all.
FEW = 0.001
FETCH_MIB = 1024
# What a daemon may read beside the model: its program and its own state, where they were dropped.
OWN_READS = 0.01
MODEL = f"{FOLDER}/model-00.safetensors"
# What is to be reached: these read past or into the page cache, and these are what people use.
READERS = ("fio direct 1M qd16", "dd bs=16M", "dd direct bs=16M", "MADV_POPULATE_READ")
HOLDERS = ("vmtouch -t", "vmtouch -l")
LIMITS = "[ram]\nbudget = \"90%\"\nreserve = \"512 MiB\"\n"


def arguments():
    """The command line."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--gib", type=int, default=GIB, help=f"size of the file that is locked (default {GIB})")
    p.add_argument("--rounds", type=int, default=ROUNDS, help=f"default {ROUNDS}")
    p.add_argument("--part", choices=("lock", "fetch"), help="only one half: the file on the disk, or the file from an origin")
    p.add_argument("--settle", type=float, default=2, metavar="S", help="pause before each cold run and each fetch (2)")
    p.add_argument("--json", type=Path, metavar="FILE", help="write every run there")
    temporary = Path(tempfile.gettempdir())
    p.add_argument("--tools", type=Path, default=temporary / "tierd-versus", metavar="DIR", help="what setup.sh made")
    p.add_argument("--disk", type=Path, metavar="DIR", help="folder on the disk under test; default: in --tools")
    p.add_argument("--ram", type=Path, default=Path("/dev/shm/tierd-versus-ram"), metavar="DIR", help="nginx's data")
    p.add_argument("--tierd", type=Path, default=REPOSITORY / "target/release/tierd", metavar="FILE")
    a = p.parse_args()
    a.disk = a.disk or a.tools / "disk"
    for needed, how in ((a.tierd, "cargo build --release"), (a.tools / "bin/resident", f"setup.sh {a.tools}")):
        if not needed.is_file():
            p.error(f"{needed} is missing: {how}")
    if a.rounds < 1 or a.gib < 1:
        p.error("--rounds and --gib must be at least 1")
    return a


@dataclass
class Run:
    """One run: seconds, MiB that were moved, bytes that the daemon read from the disk meanwhile, the machine's load."""

    seconds: float
    mib: int
    read_bytes: int = 0
    load: float = 0.0


@dataclass
class Bench:
    """The parts of one measurement, and what came out so far, by row."""

    args: argparse.Namespace
    work: Path
    origin: object  # of `contestants.Course`'s kind: only `on_client` is used
    daemon: Daemon = None
    runs: dict = field(default_factory=dict)
    failed: dict = field(default_factory=dict)
    # What `contestants.Daemon` asks a course for.
    names: tuple = (MODEL,)

    @property
    def tierd(self):
        """The binary."""
        return self.args.tierd

    @property
    def env(self):
        """Everybody's environment."""
        return environment(self.args.tools)

    def told(self, *command):
        """Runs a command of tierd's and returns what it printed. Raises `Failed`."""
        return self.run([self.tierd, "--config", self.work / "tierd.toml", *command])

    def run(self, command):
        """Runs a program and returns what it printed. Raises `Failed`."""
        command = list(map(str, command))
        done = subprocess.run(command, env=self.env, capture_output=True, text=True, timeout=RUN_S, check=False)
        if done.returncode:
            raise Failed(f"{command[0]}: exit {done.returncode}: {done.stderr.strip()[-300:]}")
        return done.stdout

    def start(self, origin):
        """Starts the daemon with an empty store and one origin."""
        write_config(self.work / "tierd.toml", self.work / "state", LIMITS + origin)
        self.daemon = Daemon(self, self.work / "tierd.toml")

    def stop(self):
        """Ends the daemon."""
        if self.daemon:
            self.daemon.stop()
            self.daemon = None

    def read_bytes(self):
        """Bytes that the daemon has read from the disk."""
        return int(Path(f"/proc/{self.daemon.process.pid}/io").read_text().split("\nread_bytes: ")[1].split()[0])

    def in_ram(self):
        """Whether the daemon says that the model is in RAM, and the kernel that so many bytes are locked."""
        status = Path(f"/proc/{self.daemon.process.pid}/status").read_text()
        locked = int(status.split("VmLck:")[1].split()[0]) << 10
        (model,) = json.loads(self.told("--json", "models"))["models"]
        return model["tier"] == "ram" and locked >= model["bytes"]

    def ensure(self, target, mib):
        """Times `tierd ensure`. Raises `Failed` where it did not do what it says."""
        load, read, start = os.getloadavg()[0], self.read_bytes(), time.monotonic()
        self.told("--quiet", "ensure", "--target", target, MODEL)
        run = Run(time.monotonic() - start, mib, load=load)
        run.read_bytes = self.read_bytes() - read
        if self.in_ram() != (target == "ram"):
            raise Failed(f"after ensure --target {target} the model is {'not ' * (target == 'ram')}locked in RAM")
        return run

    def note(self, row, run):
        """Keeps a run and tells of it."""
        self.runs.setdefault(row, []).append(run)
        speed = run.mib / 1024 / run.seconds * 1.073741824
        print(f"  {row}: {run.seconds:.3f} s, {speed:.2f} GB/s, read {run.read_bytes >> 20} MiB, load {run.load:.1f}",
              file=sys.stderr)  # fmt: skip

    def lose(self, row, why):
        """Keeps why a row failed. It does not take part any longer."""
        self.failed[row] = str(why)
        self.runs.pop(row, None)
        print(f"  {row} failed: {why}", file=sys.stderr)


_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.mmap.restype = ctypes.c_void_p
_LIBC.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)
_LIBC.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_LIBC.mincore.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p)


def resident(path):
    """The share of a file's pages that are in memory, by the kernel's count (mincore)."""
    fd = os.open(path, os.O_RDONLY)
    try:
        size = os.fstat(fd).st_size
        at = _LIBC.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, fd, 0)
    finally:
        os.close(fd)
    if at == ctypes.c_void_p(-1).value:
        raise OSError(ctypes.get_errno(), f"mmap {path}")
    pages = ctypes.create_string_buffer(-(-size // mmap.PAGESIZE))
    try:
        if _LIBC.mincore(at, size, pages):
            raise OSError(ctypes.get_errno(), f"mincore {path}")
    finally:
        _LIBC.munmap(at, size)
    return sum(pages.raw.count(n) for n in range(1, 256, 2)) / (len(pages)) if any(pages.raw) else 0.0


def drop(path):
    """Drops a file's pages. Raises `Failed` where they stay."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
        for _ in range(DROPS):
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            left = resident(path)
            if left <= FEW:
                return
            time.sleep(PAUSE_S)
    finally:
        os.close(fd)
    raise Failed(f"{left:.1%} of the pages cannot be dropped")


def _tierd(bench, _path):
    return bench.ensure("ram", bench.args.gib << 10).seconds


def _timed(bench, command):
    start = time.monotonic()
    bench.run(command)
    return time.monotonic() - start


def _fio(bench, path):
    job = ["fio", "--name=r", f"--filename={path}", "--rw=read", "--bs=1m", "--ioengine=libaio", "--iodepth=16",
           "--direct=1", "--readonly", "--invalidate=0", "--output-format=json"]  # fmt: skip
    told = bench.run(job)
    return json.loads(told[told.index("{") :])["jobs"][0]["job_runtime"] / 1000


def _vmtouch_lock(bench, path):
    """Until every page is locked; the process that holds them is ended by the id that it left."""
    pid_file = bench.work / "vmtouch.pid"
    pid_file.unlink(missing_ok=True)
    try:
        start = time.monotonic()
        # No pipe for its output: the process that stays would hold it open.
        command = ["vmtouch", "-q", "-l", "-d", "-w", "-P", pid_file, path]
        done = subprocess.run(command, env=bench.env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=RUN_S)
        seconds = time.monotonic() - start
        if done.returncode:
            raise Failed(f"vmtouch: exit {done.returncode}")
        if resident(path) < 1 - FEW:
            raise Failed("vmtouch came back before the file was resident")
        return seconds
    finally:
        with contextlib.suppress(OSError, ValueError):
            pid = int(pid_file.read_text())
            os.kill(pid, signal.SIGTERM)
            until = time.monotonic() + STOP_S
            while Path(f"/proc/{pid}/maps").exists() and time.monotonic() < until:
                time.sleep(PAUSE_S)


COLD = {
    "tierd": _tierd,
    "fio direct 1M qd16": _fio,
    "dd bs=16M": lambda bench, path: _timed(bench, ["dd", f"if={path}", "of=/dev/null", "bs=16M", "status=none"]),
    "dd direct bs=16M": lambda bench, path: _timed(
        bench, ["dd", f"if={path}", "of=/dev/null", "bs=16M", "iflag=direct", "status=none"]
    ),
    "MADV_POPULATE_READ": lambda bench, path: float(bench.run([bench.args.tools / "bin/resident", "populate", path])),
    "mlock": lambda bench, path: float(bench.run([bench.args.tools / "bin/resident", "lock", path])),
    "vmtouch -t": lambda bench, path: _timed(bench, ["vmtouch", "-q", "-t", path]),
    "vmtouch -l": _vmtouch_lock,
}
RELOCK = ("tierd, resident", "mlock, resident")


def relock(bench, path):
    """From resident to locked: tierd has just locked the file, so its pages are there."""
    for _ in range(RELOCKS):
        bench.told("--quiet", "demote", MODEL)
        kept = resident(path)
        if kept < 1 - FEW:
            raise Failed(f"only {kept:.1%} of the pages stayed after the demotion")
        bench.note(RELOCK[1], Run(COLD["mlock"](bench, path), bench.args.gib << 10, 0, os.getloadavg()[0]))
        bench.note(RELOCK[0], bench.ensure("ram", bench.args.gib << 10))


def measure_lock(bench):
    """One large file on the disk, cold and resident."""
    a, source = bench.args, bench.work / "origin"
    print(f"filling an origin with {a.gib} GiB", file=sys.stderr)
    make_files(source / FOLDER, (a.gib << 10,))
    bench.start(f'[[origin]]\nname = "bench"\nkind = "folder"\npath = "{source}"\n')
    bench.told("--quiet", "ensure", MODEL)
    path = bench.work / "state/models" / MODEL
    for number in range(a.rounds):
        turn = [row for row in COLD if row not in bench.failed]
        random.Random(f"ram {number}").shuffle(turn)
        for row in turn:
            try:
                drop(path)
                time.sleep(a.settle)
                if resident(path) > FEW:
                    raise Failed("somebody else reads the file")
                load, read = os.getloadavg()[0], bench.read_bytes()
                seconds = COLD[row](bench, path)
                bench.note(row, Run(seconds, a.gib << 10, bench.read_bytes() - read, load))
                if row == "tierd":
                    relock(bench, path)
                    bench.told("--quiet", "demote", MODEL)
            except (Failed, OSError, ValueError, subprocess.TimeoutExpired) as why:
                bench.lose(row, why)


FETCHES = {"fetch to nvme": "nvme", "fetch to ram": "ram"}


def measure_fetch(bench):
    """The same file from nginx to the disk alone, and to RAM."""
    for number in range(bench.args.rounds):
        turn = list(FETCHES)
        random.Random(f"fetch {number}").shuffle(turn)
        for row in turn:
            time.sleep(bench.args.settle)
            bench.note(row, bench.ensure(FETCHES[row], FETCH_MIB))
            if FETCHES[row] == "ram":
                bench.told("--quiet", "demote", MODEL)
            bench.told("--quiet", "evict", MODEL)
            os.sync()


def middle(bench, row):
    """The median of a row's seconds, or nothing."""
    runs = bench.runs.get(row)
    return statistics.median(run.seconds for run in runs) if runs else None


def judge(bench, of):
    """The goals: what, wanted, got, whether it is enough. `of` makes one number of a row's runs."""
    goals = []

    def goal(what, sign, want, got):
        passed = got is not None and (got >= want if sign == ">=" else got <= want)
        goals.append({"what": what, "wanted": f"{sign} {want:g}", "got": got, "pass": passed})

    ours = of(bench, "tierd")
    readers = {row: of(bench, row) for row in READERS if bench.runs.get(row)}
    best = min(readers, key=readers.get, default="none measured")
    goal(f"cold to locked, times the fastest reader ({best})", ">=", 0.95, readers[best] / ours if ours and readers else None)
    for row in HOLDERS:
        theirs = of(bench, row)
        goal(f"cold to locked, times {row}", ">=", 2, theirs / ours if ours and theirs else None)
    again = of(bench, RELOCK[0])
    goal("resident to locked, GB/s", ">=", 100, (bench.args.gib << 30) / again / 1e9 if again else None)
    disk, ram = (of(bench, row) for row in FETCHES)
    goal("L4 to L2, times L4 to L3", "<=", 1.25, ram / disk if ram and disk else None)
    reads = [run.read_bytes / (run.mib << 20) for run in bench.runs.get("fetch to ram", ())]
    goal("L4 to L2, read back from the disk over size", "<=", OWN_READS, statistics.median(reads) if reads else None)
    return goals


def least(bench, row):
    """The least of a row's seconds: what it does when the machine leaves it alone."""
    runs = bench.runs.get(row)
    return min(run.seconds for run in runs) if runs else None


def table(bench):
    """Every row, in groups: cold, resident, fetched."""
    lines = ["| what | s (min-max) | GB/s (best) | times tierd | daemon's reads, MiB | runs |", "|---|---|---|---|---|---|"]
    for group in (sorted(COLD, key=lambda row: middle(bench, row) or RUN_S), RELOCK, FETCHES):
        ours = middle(bench, next(row for row in ("tierd", RELOCK[0], "fetch to ram") if row in group))
        for row in group:
            runs = bench.runs.get(row)
            if not runs:
                lines.append(f"| {row} | {'failed: ' + bench.failed[row][-120:] if row in bench.failed else '-'} | | | | |")
                continue
            seconds, ends = middle(bench, row), [run.seconds for run in runs]
            gb = runs[0].mib * (1 << 20) / 1e9
            times = f"{seconds / ours:.2f}" if ours else "-"
            read = f"{statistics.median(run.read_bytes for run in runs) / (1 << 20):.0f}"
            lines.append(f"| {row} | {seconds:.3f} ({min(ends):.3f}-{max(ends):.3f}) | {gb / seconds:.2f} ({gb / min(ends):.2f}) "
                         f"| {times} | {read} | {len(runs)} |")  # fmt: skip
    return "\n".join(lines)


def verdicts(goals):
    """The goals as a table."""
    shown = {None: "not measured"}
    lines = ["| goal | wanted | got (median) | best runs | |", "|---|---|---|---|---|"]
    for goal in goals:
        got, best = (shown.get(goal[key]) or f"{goal[key]:.2f}" for key in ("got", "at_best"))
        lines.append(f"| {goal['what']} | {goal['wanted']} | {got} | {best} | {'PASS' if goal['pass'] else '**FAIL**'} |")
    return "\n".join(lines)


def measure(a, work):
    """Everything, in a folder of its own."""

    class Loopback:
        """The daemon runs where the script does."""

        on_client = ()

    bench = Bench(a, work / "lock", Loopback)
    if a.part != "fetch":
        bench.work.mkdir()
        try:
            measure_lock(bench)
        except Failed as why:
            bench.lose("tierd", why)
        finally:
            bench.stop()
            shutil.rmtree(bench.work)
    if a.part == "lock":
        return bench
    bench.work = work / "fetch"
    bench.work.mkdir()
    shutil.rmtree(a.ram, ignore_errors=True)
    scenario = Scenario("ram", "", "http", (FETCH_MIB,), (), 0)
    origin = Origin(scenario, a.tools, bench.work, a.ram)
    try:
        print(f"filling nginx with {FETCH_MIB} MiB", file=sys.stderr)
        load = bench.work / "load"
        make_files(load / FOLDER, scenario.sizes)
        write_config(bench.work / "push.toml", bench.work / "push", origin.tierd_origin(filling=True))
        bench.run([a.tierd, "--config", bench.work / "push.toml", "--quiet", "push", load, "--origin", "bench"])
        shutil.rmtree(load)
        bench.start(origin.tierd_origin())
        measure_fetch(bench)
    except Failed as why:
        bench.lose("fetch to ram", why)
    finally:
        bench.stop()
        origin.stop()
        shutil.rmtree(a.ram, ignore_errors=True)
    return bench


def main():
    """Measures, prints, and exits with 1 if a goal was missed."""
    a = arguments()
    os.umask(0o022)
    version = subprocess.run([a.tierd, "--version"], capture_output=True, text=True, check=True).stdout.strip()
    now = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
    head = {"date": now, "machine": machine(a), "tierd": version, "rounds": a.rounds, "gib": a.gib}
    with tempfile.TemporaryDirectory(prefix="ram-", dir=a.disk) as work:
        bench = measure(a, Path(work))
    goals = [{**goal, "at_best": best["got"]} for goal, best in zip(judge(bench, middle), judge(bench, least), strict=True)]
    loads = [run.load for runs in bench.runs.values() for run in runs]
    print(f"{head['machine']}; {version}; {a.rounds} rounds; {a.gib} GiB locked, {FETCH_MIB} MiB fetched; "
          f"load {min(loads, default=0):.1f} to {max(loads, default=0):.1f}\n")  # fmt: skip
    print(f"{table(bench)}\n\n### Goals\n\n{verdicts(goals)}")
    if a.json:
        runs = {row: [vars(run) for run in runs] for row, runs in bench.runs.items()}
        a.json.write_text(json.dumps({**head, "runs": runs, "failed": bench.failed, "goals": goals}, indent=1))
    sys.exit(not all(goal["pass"] for goal in goals))


if __name__ == "__main__":
    main()
