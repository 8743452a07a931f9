"""The origins: nginx and SeaweedFS on loopback or behind a link, with their data in memory.

Ends every server that it started, by its process id. Never listens on anything but loopback or the link's own addresses.
"""

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import time
from pathlib import Path

KEY, SECRET, BUCKET = "AKIDVERSUS000000", "versus-is-no-secret-at-all", "bench"
# The folder of ComfyUI's layout that all files are in.
FOLDER = "diffusion_models"
NAMESPACES = ("versus-origin", "versus-client")
LINK_ADDRESS = "10.231.0.1"
START_S, STOP_S, PAUSE_S = 60, 15, 0.2

_NGINX = """
{user} worker_processes 2; daemon off; pid {work}/nginx.pid; error_log {work}/nginx.log warn;
events {{ worker_connections 4096; }}
http {{
  access_log off; sendfile on; sendfile_max_chunk {chunk}; tcp_nopush on; keepalive_requests 1000000;
  default_type application/octet-stream; limit_rate {rate}; {temporary}
  server {{ listen {host}:{port}; root {root}; }}
}}
"""


class Origin:
    """The servers of one scenario. `on_client` is what a contestant's command must start with to reach them."""

    def __init__(self, scenario, tools, work, ram):
        self.scenario, self.tools, self.work = scenario, tools, work
        self.data = ram / "data"
        self.data.mkdir(parents=True)
        self.host, self.on_server, self.on_client = "127.0.0.1", [], []
        self._running, self._link = [], None
        self.port = _free_ports(5)
        try:
            if scenario.link:
                self._join(scenario.link)
            if scenario.origin == "http":
                self._nginx()
            else:
                self._seaweed()
        except BaseException:
            self.stop()
            raise

    @property
    def base(self):
        """The server's address."""
        return f"http://{self.host}:{self.port}"

    def url(self, name):
        """Where one file is for everybody: over S3 it may be read without a signature."""
        return f"{self.base}/{'' if self.scenario.origin == 'http' else BUCKET + '/'}{FOLDER}/{name}"

    def tierd_origin(self, filling=False):
        """The origin as tierd's configuration names it; for filling nginx it is the folder behind it."""
        if self.scenario.origin == "s3":
            return (
                f'[[origin]]\nname = "bench"\nkind = "s3"\nbucket = "{BUCKET}"\nendpoint = "{self.base}"\n'
                f'access_key_id = "{KEY}"\nsecret_access_key_env = "AWS_SECRET_ACCESS_KEY"\n'
            )
        if filling:
            return f'[[origin]]\nname = "bench"\nkind = "folder"\npath = "{self.data}"\n'
        return f'[[origin]]\nname = "bench"\nkind = "http"\nurl = "{self.base}/"\n'

    def cpu(self):
        """Seconds of processor time that the servers have used."""
        ticks = 0
        for server in self._running:
            with contextlib.suppress(OSError):
                children = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()
                ticks += sum(cpu_ticks(pid) for pid in [server.pid, *children])
        return ticks / os.sysconf("SC_CLK_TCK")

    def stop(self):
        """Ends the servers and takes the link away."""
        for server in self._running:
            server.send_signal(signal.SIGTERM)
        for server in [*self._running, *filter(None, [self._link])]:
            if server is self._link:
                server.kill()
            try:
                server.wait(STOP_S)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()
        if self._link:
            _remove_namespaces()

    def _join(self, link):
        if os.geteuid() != 0:
            raise RuntimeError("needs root, for network namespaces")
        _remove_namespaces()
        for name in NAMESPACES:
            subprocess.run(["ip", "netns", "add", name], check=True)
            subprocess.run(["ip", "-n", name, "link", "set", "lo", "up"], check=True)
        command = [self.tools / "bin/link", *NAMESPACES, str(link.delay_ms), str(link.rate_mbit)]
        self._link = subprocess.Popen(command, stdout=subprocess.PIPE)
        if self._link.stdout.readline() != b"up\n":
            raise RuntimeError("the link between the namespaces did not come up")
        self.host = LINK_ADDRESS
        self.on_server, self.on_client = (["ip", "netns", "exec", name] for name in NAMESPACES)

    def _start(self, *command):
        log = open(self.work / "servers.log", "ab")
        command = [*self.on_server, *map(str, command)]
        self._running.append(subprocess.Popen(command, stdout=log, stderr=log, cwd=self.work))

    def _nginx(self):
        kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        text = _NGINX.format(
            user="user root;" if os.geteuid() == 0 else "",
            work=self.work,
            # nginx rests after each chunk but the last: large ones would let short requests pass the limit.
            chunk="256k" if self.scenario.rate_limit else "2m",
            rate=self.scenario.rate_limit or 0,
            temporary="".join(f"{kind}_temp_path {self.work}/nginx-{kind};" for kind in kinds),
            host=self.host,
            port=self.port,
            root=self.data,
        )
        (self.work / "nginx.conf").write_text(text)
        self._start("nginx", "-c", self.work / "nginx.conf")
        self._wait("nginx", self.base, "403")

    def _seaweed(self):
        anonymous = {"name": "anonymous", "actions": [f"Read:{BUCKET}"]}
        everything = ["Admin", "Read", "Write", "List", "Tagging"]
        signed = {"name": "bench", "credentials": [{"accessKey": KEY, "secretKey": SECRET}], "actions": everything}
        (self.work / "s3.json").write_text(json.dumps({"identities": [signed, anonymous]}))
        s3, master, volume, filer = range(self.port, self.port + 4)
        self._start(
            self.tools / "venv/bin/weed", "-logtostderr", "server", f"-ip={self.host}", f"-ip.bind={self.host}",
            f"-dir={self.data}", f"-master.port={master}", f"-volume.port={volume}", "-filer", f"-filer.port={filer}",
            "-s3", f"-s3.port={s3}", f"-s3.config={self.work}/s3.json", "-s3.iam=false",
            "-master.telemetry=false", "-master.volumeSizeLimitMB=2048", "-volume.max=24",
        )  # fmt: skip
        self._wait("SeaweedFS's volumes", f"http://{self.host}:{master}/dir/assign", "200")
        # A bucket is a folder of the filer.
        self._wait("SeaweedFS's filer", f"http://{self.host}:{filer}/buckets/{BUCKET}/", "201", "-X", "POST")
        self._wait("SeaweedFS's S3 gateway", f"http://{self.host}:{s3}/{BUCKET}/no-such-object", "404")

    def _wait(self, what, url, status, *options):
        until = time.monotonic() + START_S
        ask = [*self.on_server, "curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "--noproxy", "*", *options, url]
        while (answer := subprocess.run(ask, capture_output=True, text=True).stdout) != status:
            if time.monotonic() > until:
                raise RuntimeError(f"{what}: {url} answers {answer}, not {status}; see {self.work}/servers.log")
            time.sleep(PAUSE_S)


def cpu_ticks(pid):
    """Clock ticks of processor time that a process has used, its threads included."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return int(fields[11]) + int(fields[12])


def _remove_namespaces():
    for name in NAMESPACES:
        subprocess.run(["ip", "netns", "del", name], stderr=subprocess.DEVNULL, check=False)


def _free_ports(count):
    """The first of so many free ports in a row. SeaweedFS has second ports 10000 above its first."""
    for _ in range(1000):
        first = random.randrange(15_000, 25_000)
        if all(_is_free(port) for n in range(count) for port in (first + n, first + n + 10_000)):
            return first
    raise RuntimeError("no free ports")


def _is_free(port):
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
