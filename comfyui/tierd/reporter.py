# SPDX-License-Identifier: Apache-2.0
"""Tells tierd what happens: a bounded queue that hooks put into, and one thread that says hello and sends reports.

Hooks never wait here: a full queue drops the event and counts it. What is on the devices is sent whole every time,
so that a lost report costs nothing but a second.
"""

import collections
import json
import logging
import os
import sys
import threading
import time
import uuid

from . import vram
from .wire import PACK_VERSION, Unreachable, decoded, error_text

log = logging.getLogger("tierd")

EVENTS_MAX = 2048  # waiting to be sent
EVENTS_PER_REPORT_MAX = 256
REPORT_BYTES_MAX = 1024 * 1024
REPORT_INTERVAL_S = 1.0
HELLO_INTERVAL_S = 60.0
ABSENT_INTERVAL_S = 10.0
GATE_TIMEOUT_S = 1800  # for a daemon that gives none
BACKOFF_FIRST_S, BACKOFF_MAX_S = 0.5, 5.0
GATHER_S = 0.05  # events that come together go together
DROPPED_LOG_S = 60.0
ARGUMENTS_MAX, FOLDERS_MAX, DIRECTORIES_MAX = 256, 256, 64


class Gate:
    """What tierd's last answer says of the gate. Replaced whole, so that one read sees one state."""

    def __init__(self, on=False, timeout_s=GATE_TIMEOUT_S, absent=b""):
        self.on = on
        self.timeout_s = timeout_s
        self._absent = absent

    def with_absent(self, absent):
        return Gate(self.on, self.timeout_s, absent)

    def is_absent(self, model):
        """Whether the catalog has the model, and this disk does not."""
        # The answer is searched as it came: a hundred thousand names, decoded, would hold Python's lock for a tenth of a second.
        return any(json.dumps(model, ensure_ascii=ascii).encode("utf-8", "replace") in self._absent for ascii in (False, True))


class Reporter:
    def __init__(self, daemon, modules, clock=time.monotonic):
        self.worker = str(uuid.uuid4())
        self.hooks = {}
        self.before_hello = lambda: None  # brings `hooks` up to date
        self.gate = Gate()
        self.dropped = 0
        self._daemon = daemon
        self._modules = modules
        self._clock = clock
        self._events = collections.deque()
        self._devices = None  # the last state, as `vram.Snapshot` gave it
        self._batch = []  # taken from the queue and not yet acknowledged
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._seq = 0
        self._hello_at = None
        self._absent_at = None
        self._etag = None
        self._interval = REPORT_INTERVAL_S
        self._backoff = 0.0
        self._reachable = None  # unknown before the first try
        self._dropped_logged = (0, -DROPPED_LOG_S)
        self._refusals = set()  # said in the log since the last first hello

    # What hooks call: no lock held, no waiting, no file.

    def event(self, kind, **fields):
        if len(self._events) >= EVENTS_MAX:
            self.dropped += 1
            return
        self._events.append(dict(fields, kind=kind, at=int(time.time() * 1000)))
        self._wake.set()

    def devices(self, devices):
        self._devices = devices
        self._wake.set()

    # The thread.

    def start(self):
        threading.Thread(target=self._run, name="tierd-reporter", daemon=True).start()

    def stop(self):
        self._stop.set()
        self._wake.set()

    def _run(self):
        while not self._stop.is_set():
            try:
                self.turn()
                self._wait()
            except Exception:  # a bug in here may cost reports, not a thread that is never seen again
                log.warning("tierd: reporting failed; trying again in %d s", BACKOFF_MAX_S, exc_info=True)
                self._stop.wait(BACKOFF_MAX_S)
        self._daemon.close()

    def _wait(self):
        if self._backoff:
            self._stop.wait(self._backoff)  # an event is no reason to knock sooner
        elif self._batch or self._events:
            self._stop.wait(GATHER_S)
        elif self._wake.wait(self._interval):
            self._stop.wait(GATHER_S)
        self._wake.clear()

    def turn(self):
        """One round: hello if it is due, one report, the list of absent models if it is due."""
        try:
            if self._hello_due() and not self._hello():
                return
            if self._report() == 404:  # tierd was restarted and has not heard of us
                self._hello_at = None
                if self._hello():
                    self._report()
            self._absent()
            self._log_dropped()
        except Unreachable as error:
            self._lost(error)

    def _hello_due(self):
        return self._hello_at is None or self._clock() - self._hello_at >= HELLO_INTERVAL_S

    def _hello(self):
        self.before_hello()
        status, _, data = self._send("POST", "/comfy/v1/hello", json.dumps(self._hello_body()).encode())
        if status != 200:
            self._refused("hello", status, data)
            return False
        answer = decoded(data)
        if self._hello_at is None:
            self._absent_at, self._etag = None, None
            self._refusals.clear()
        self._hello_at = self._clock()
        self._interval = min(max(_number(answer.get("report_interval_ms"), 1000) / 1000.0, 0.1), 60.0)
        on = bool(answer.get("gate")) and self._daemon.settings.gate
        self.gate = Gate(on, _number(answer.get("gate_timeout_s"), 0) or GATE_TIMEOUT_S, self.gate._absent)
        self._found()
        return True

    def _hello_body(self):
        return {
            "worker": self.worker,
            "pid": os.getpid(),
            "pack_version": PACK_VERSION,
            "comfyui_version": str(getattr(self._modules.get("comfyui_version"), "__version__", "")),
            "address": _address(self._modules),
            "argv": [str(argument)[:1024] for argument in sys.argv[:ARGUMENTS_MAX]],
            "hooks": self.hooks,
            "folders": _folders(self._modules),
        }

    def _report(self):
        while len(self._batch) < EVENTS_PER_REPORT_MAX and self._events:
            self._batch.append(_with_bytes(self._events.popleft()))
        count = len(self._batch)
        body = self._report_body(count)
        while len(body) > REPORT_BYTES_MAX and count > 1:
            count //= 2
            body = self._report_body(count)
        status, _, data = self._send("POST", "/comfy/v1/report", body)
        if status == 404:
            return status
        if status in (429, 503):
            self._refused("report", status, data)
            return status
        if status != 200:
            self.dropped += count  # sent again, it would be refused again
            self._refused("report", status, data)
        else:
            self._found()
        del self._batch[:count]
        return status

    def _report_body(self, count):
        self._seq += 1
        report = {"worker": self.worker, "seq": self._seq, "events": self._batch[:count], "dropped_events": self.dropped}
        devices = self._devices
        if devices is not None:
            report["devices"] = [vram.by_file(device) for device in devices]
        return json.dumps(report).encode()

    def _absent(self):
        if not self.gate.on or (self._absent_at is not None and self._clock() - self._absent_at < ABSENT_INTERVAL_S):
            return
        status, headers, data = self._send("GET", "/comfy/v1/absent", None, {"If-None-Match": self._etag} if self._etag else None)
        self._absent_at = self._clock()
        if status == 200:
            self._etag = headers.get("ETag")
            self.gate = self.gate.with_absent(data)
        elif status != 304:
            self._refused("list of absent models", status, data, back_off=False)

    def _send(self, method, path, body, headers=None):
        return self._daemon.call(method, path, body, headers)

    # What is said in ComfyUI's log: a change, once.

    def _found(self):
        self._backoff = 0.0
        if not self._reachable:
            self._reachable = True
            log.info("tierd: connected to %s; %s", self._daemon.settings.where(), "missing models are fetched on use" if self.gate.on else "the gate is off")

    def _lost(self, error):
        self._backoff = min(max(self._backoff * 2, BACKOFF_FIRST_S), BACKOFF_MAX_S)
        if self._reachable is not False:
            self._reachable = False
            log.info("tierd: no daemon answers (%s); ComfyUI goes on without it, and the pack keeps looking", error)

    def _refused(self, what, status, data, back_off=True):
        if (what, status) not in self._refusals:
            self._refusals.add((what, status))
            log.warning("tierd: the daemon refuses the %s: HTTP %d %s", what, status, error_text(data))
        if back_off:
            self._backoff = min(max(self._backoff * 2, BACKOFF_FIRST_S), BACKOFF_MAX_S)

    def _log_dropped(self):
        count, at = self._dropped_logged
        if self.dropped > count and self._clock() - at >= DROPPED_LOG_S:
            log.warning("tierd: %d events were dropped so far: more came than could be sent", self.dropped)
            self._dropped_logged = (self.dropped, self._clock())


def _with_bytes(event):
    if event["kind"] == "file_read" and "bytes" not in event:
        event["bytes"] = vram.file_bytes(event["file"])
    return event


def _number(value, default):
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else default


def _address(modules):
    """Where this ComfyUI listens, as somebody on this machine would reach it; "" if that cannot be told."""
    args = getattr(modules.get("comfy.cli_args"), "args", None)
    port = getattr(args, "port", None)
    if not isinstance(port, int):
        return ""
    host = str(getattr(args, "listen", "") or "127.0.0.1").split(",")[0].strip()
    if host in ("", "0.0.0.0", "::", "[::]", "localhost"):
        host = "127.0.0.1"
    scheme = "https" if getattr(args, "tls_keyfile", None) and getattr(args, "tls_certfile", None) else "http"
    return "%s://%s:%d" % (scheme, "[%s]" % host if ":" in host else host, port)


def _folders(modules):
    known = getattr(modules.get("folder_paths"), "folder_names_and_paths", None) or {}
    folders = {}
    for folder, entry in list(known.items())[:FOLDERS_MAX]:
        try:
            folders[str(folder)] = [os.path.abspath(path) for path in list(entry[0])[:DIRECTORIES_MAX]]
        except Exception:
            continue  # an entry of another shape hides no other
    folders.pop("custom_nodes", None)
    return folders
