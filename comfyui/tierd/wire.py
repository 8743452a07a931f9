# SPDX-License-Identifier: Apache-2.0
"""How the pack talks to tierd: JSON over HTTP/1.1, on tierd's Unix socket or a loopback port with a token.

Knows nothing of ComfyUI. Every call has a time limit and a limit on the answer's size. The token is never
logged and never part of an error.
"""

import http.client
import ipaddress
import json
import os
import queue
import socket
import threading
from urllib.parse import urlsplit

PACK_VERSION = "0.1.0"
DEFAULT_SOCKET = "/run/tierd/tierd.sock"
CALL_TIMEOUT_S = 5.0
ANSWER_BYTES_MAX = 32 * 1024 * 1024  # 100,000 absent models with long names
LINE_BYTES_MAX = 64 * 1024
LINES_MAX = 64  # lines of one ensure that wait to be read; the stream waits with them


class Unreachable(Exception):
    """Nothing at the other end answers as tierd would. The message says where and why."""


class Settings:
    """What the environment says. `problem` is a sentence when it makes no sense; the pack stays off then."""

    def __init__(self, environ=os.environ):
        self.socket = environ.get("TIERD_SOCKET", "").strip() or DEFAULT_SOCKET
        self.address = environ.get("TIERD_ADDRESS", "").strip()
        self.gate = environ.get("TIERD_GATE", "").strip() != "0"
        self._token = environ.get("TIERD_TOKEN", "").strip()
        self._token_file = environ.get("TIERD_TOKEN_FILE", "").strip()
        self.host, self.port, self.problem = "", 0, ""
        if self.address:
            self._parse_address()

    def _parse_address(self):
        try:
            parts = urlsplit(self.address)
            self.host, self.port = parts.hostname or "", parts.port or 0
        except ValueError:
            parts = None
        if parts is None or parts.scheme != "http" or not self.host or not self.port:
            self.problem = "TIERD_ADDRESS is %r: write http://127.0.0.1:PORT" % self.address
        elif not _is_loopback(self.host):
            self.problem = "TIERD_ADDRESS names %s: only this machine (127.0.0.1) is allowed, a token is not encrypted" % self.host

    def where(self):
        return self.address or self.socket

    def token(self):
        """The token in force now; a file is read anew, so that it can be replaced while ComfyUI runs."""
        if self._token_file:
            try:
                with open(self._token_file, encoding="utf-8") as file:
                    return file.read(4096).strip()
            except OSError as error:
                raise Unreachable("TIERD_TOKEN_FILE cannot be read: %s" % error.strerror)
        return self._token


def _is_loopback(host):
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path, timeout):
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self):
        if not hasattr(socket, "AF_UNIX"):
            raise OSError("this system's Python has no Unix sockets: set TIERD_ADDRESS")
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class Daemon:
    """One end of comfy/v1. `call` keeps one connection open and belongs to one thread; `ensure` opens its own."""

    def __init__(self, settings):
        self.settings = settings
        self._connection = None

    def _open(self, timeout):
        if self.settings.address:
            return http.client.HTTPConnection(self.settings.host, self.settings.port, timeout=timeout)
        return _UnixConnection(self.settings.socket, timeout)

    def _headers(self, extra=None):
        headers = {"User-Agent": "tierd-comfyui/" + PACK_VERSION, "Content-Type": "application/json"}
        token = self.settings.token() if self.settings.address else ""
        if token:
            headers["Authorization"] = "Bearer " + token
        headers.update(extra or {})
        return headers

    def _why(self, error):
        text = getattr(error, "strerror", None) or str(error) or type(error).__name__
        return Unreachable("%s: %s" % (self.settings.where(), text))

    def call(self, method, path, body=None, headers=None):
        """Returns (status, headers, the answer's bytes). Raises `Unreachable`, after which the next call connects anew."""
        fresh = self._connection is None
        try:
            return self._call(method, path, body, headers)
        except (OSError, http.client.HTTPException, ValueError) as error:
            self.close()
            # tierd may have closed a connection that was idle: that says nothing about tierd.
            if fresh or isinstance(error, socket.timeout):
                raise self._why(error) from None
        try:
            return self._call(method, path, body, headers)
        except (OSError, http.client.HTTPException, ValueError) as error:
            self.close()
            raise self._why(error) from None

    def _call(self, method, path, body, headers):
        if self._connection is None:
            self._connection = self._open(CALL_TIMEOUT_S)
        self._connection.request(method, path, body=body, headers=self._headers(headers))
        answer = self._connection.getresponse()
        data = answer.read(ANSWER_BYTES_MAX + 1)
        if len(data) > ANSWER_BYTES_MAX:
            raise ValueError("an answer of more than %d bytes" % ANSWER_BYTES_MAX)
        return answer.status, answer.headers, data

    def close(self):
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def ensure(self, body):
        """Starts an ensure and returns its `Lines`. Never blocks."""
        return Lines(self, body)


class Lines:
    """The lines of one ensure, read by a thread of their own, so that who waits for them can look up now and then."""

    END = object()

    def __init__(self, daemon, body):
        self._daemon = daemon
        self._body = body
        self._lines = queue.Queue(maxsize=LINES_MAX)
        self._closed = threading.Event()
        self._sock = None
        threading.Thread(target=self._read, name="tierd-ensure", daemon=True).start()

    def next(self, timeout):
        """The next of: a decoded line; (status, text) for a refusal; an `Unreachable`; `END`. None after `timeout` seconds."""
        try:
            return self._lines.get(timeout=timeout)
        except queue.Empty:
            return None

    def close(self):
        """Leaves the ensure. tierd sees the caller go."""
        self._closed.set()
        try:
            if self._sock is not None:
                self._sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # it was closed already

    def _put(self, item):
        while not self._closed.is_set():
            try:
                return self._lines.put(item, timeout=0.5)
            except queue.Full:
                continue

    def _read(self):
        connection = self._daemon._open(CALL_TIMEOUT_S)
        try:
            connection.request("POST", "/comfy/v1/ensure", body=self._body, headers=self._daemon._headers())
            # From here on silence is allowed: the one who waits keeps the time, and shuts the socket down to end this.
            self._sock = connection.sock
            self._sock.settimeout(None)
            if self._closed.is_set():
                return
            answer = connection.getresponse()
            if answer.status != 200:
                self._put((answer.status, error_text(answer.read(LINE_BYTES_MAX))))
                return
            while not self._closed.is_set():
                line = answer.readline(LINE_BYTES_MAX)
                if not line:
                    break
                self._put(decoded(line))
            self._put(Lines.END)
        except Unreachable as error:
            self._put(error)
        except Exception as error:
            self._put(self._daemon._why(error))
        finally:
            connection.close()


def decoded(data):
    """A JSON object, or {} for anything else."""
    try:
        value = json.loads(data)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def error_text(data):
    """What a refusal says."""
    return str(decoded(data).get("error", ""))[:500]
