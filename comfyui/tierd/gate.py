# SPDX-License-Identifier: Apache-2.0
"""The gate: a prompt that opens a model which is in tierd's catalog, but not here yet, waits for it.

It waits on the prompt's thread only, never on the one that answers HTTP, and only for names that tierd has called
absent or that stand in ComfyUI's folders as a link to nothing. Where ComfyUI would fail for want of any other name, tierd
is asked once. The wait ends with the file, with an exception that says why not, or with ComfyUI's own interrupt.
"""

import asyncio
import json
import logging
import os
import threading
import time

from .wire import Lines, Unreachable

log = logging.getLogger("tierd")

LOOK_UP_S = 0.25  # how late an interrupt may be noticed
PROGRESS_EVERY_S = 3.0
RECONNECT_S = 30.0  # a daemon that is being restarted is waited for this long
RECONNECT_PAUSE_S = 0.5
ASKED_S = 2.0  # for a name that tierd may never have heard of, it has this long to say something
ABSENT, MARK, ASKED = "absent", "mark", "asked"  # how sure it is that tierd has the model
ALIASES = {"unet": "diffusion_models", "clip": "text_encoders", "t2i_adapter": "controlnet"}
PASSING = ("shutting_down", "busy")  # failures of the daemon, not of the model: tried again
OPTIONAL_FOLDERS = ("vae_approx",)  # previews: ComfyUI asks whether they are there, and goes on without


class ModelNotReady(FileNotFoundError):
    """What ComfyUI shows on the node when the gate could not get the file."""

    __module__ = "tierd"  # ComfyUI shows it, and names modules of packs by their path


class _Interrupted(Exception):
    def __init__(self, error):
        super().__init__()
        self.error = error


class Waiter:
    def __init__(self, daemon, reporter, prompts, modules, clock=time.monotonic):
        self._daemon = daemon
        self._reporter = reporter
        self._prompts = prompts
        self._modules = modules
        self._clock = clock
        self._local = threading.local()
        self.check_interrupt = lambda: None  # ComfyUI's own, as it was before it was hooked

    def demanding(self, call, args, kwargs):
        """Runs get_full_path_or_raise: what is asked for inside may not be missing."""
        before = self._is_demanded()
        self._local.demanding = True
        try:
            return call(*args, **kwargs)
        finally:
            self._local.demanding = before

    def find(self, original, args, kwargs):
        """ComfyUI's get_full_path, and where that finds nothing, the gate."""
        found = original(*args, **kwargs)
        if found is not None:
            return found
        try:
            wanted = self._wanted(args, kwargs)
            if wanted is None:
                return None
            path = self._wait(*wanted)
            return None if path is None else original(*args, **kwargs) or path or None
        except ModelNotReady as error:
            if wanted[1] in OPTIONAL_FOLDERS and not self._is_demanded():
                log.warning("%s", error)
                return None
            raise
        except _Interrupted as interrupted:
            error = interrupted.error
        except Exception:
            log.warning("tierd: the gate failed; ComfyUI goes on as if the model were missing", exc_info=True)
            return None
        raise error

    def _wanted(self, args, kwargs):
        """(model, folder, how sure), or None if this call is not the gate's business."""
        gate = self._reporter.gate
        if not gate.on or not self._on_prompt_thread():
            return None
        folder = args[0] if args else kwargs.get("folder_name")
        name = args[1] if len(args) > 1 else kwargs.get("filename")
        if not isinstance(folder, str) or not isinstance(name, str) or not name:
            return None
        name = os.path.relpath(os.path.join("/", name), "/")
        folders = self._folders(ALIASES.get(folder, folder), folder)
        for canonical in folders:
            if gate.is_absent(_model(canonical, name)):
                return _model(canonical, name), canonical, ABSENT
        for canonical, directories in folders.items():
            if any(_is_mark(os.path.join(directory, name)) for directory in directories):
                return _model(canonical, name), canonical, MARK
        # The list of absent models may be some seconds old.
        canonical = next(iter(folders))
        return (_model(canonical, name), canonical, ASKED) if self._is_demanded() else None

    def _is_demanded(self):
        return getattr(self._local, "demanding", False)

    def _on_prompt_thread(self):
        try:
            running = asyncio.get_running_loop()
        except RuntimeError:
            running = None
        server = getattr(getattr(self._modules.get("server"), "PromptServer", None), "instance", None)
        if running is not None and running is getattr(server, "loop", None):
            return False  # the thread that answers HTTP
        return self._prompts.here() is not None

    def _folders(self, canonical, folder):
        """tierd's folders in which the file may lie, each with its directories: the one that is named comes first, then those
        that the directories are called. Node packs have names of their own, such as unet_gguf, for directories of others."""
        known = getattr(self._modules.get("folder_paths"), "folder_names_and_paths", None) or {}
        entry = known.get(canonical) or known.get(folder)
        folders = {canonical: []}
        for directory in entry[0] if entry else ():
            called = os.path.basename(os.path.normpath(directory))
            folders.setdefault(ALIASES.get(called, called), []).append(directory)
        return folders

    def _wait(self, model, _folder, sure):
        started = self._clock()
        timeout = self._reporter.gate.timeout_s
        state = _Progress(model, self._clock)
        lost_at = None
        if sure != ASKED:
            log.info("tierd: %s is not here yet: asking tierd for it, for %d s at most", model, timeout)
        while True:
            heard = state.heard
            outcome = self._ensure(model, state, started + timeout, started + ASKED_S if sure == ASKED else None)
            if isinstance(outcome, dict) and "ready" in outcome:
                log.info("tierd: %s is here, after %.1f s", model, self._clock() - started)
                return str((outcome["ready"] or {}).get("path") or "")
            if isinstance(outcome, dict):
                failed = outcome["failed"] or {}
                if sure != ABSENT and _is_unknown(failed):
                    log.info("tierd: %s is not tierd's either: %s", model, _sentence(failed))
                    return None  # ComfyUI's own answer stands
                raise ModelNotReady("tierd could not get %s: %s" % (model, _sentence(failed)))
            if outcome == "timeout":
                raise ModelNotReady("tierd did not get %s within %d s (%s). Queue the prompt again to go on waiting, or raise the gate's "
                                    "time-out in tierd's configuration" % (model, timeout, state.text()))
            if sure == ASKED and not state.heard:
                return None
            lost_at = self._clock() if lost_at is None or state.heard > heard else lost_at
            if self._clock() - lost_at >= RECONNECT_S:
                raise ModelNotReady("%s is not here, and tierd, which could fetch it, does not answer (%s). Is it running? `tierd status` tells"
                                    % (model, outcome))
            self._pause()

    def _ensure(self, model, state, deadline, first_word_by):
        """One attempt. Returns the last line, "timeout", or a text that says how the daemon was lost."""
        body = {"worker": self._reporter.worker, "model": model}
        prompt_id = self._prompts.here()
        if prompt_id:
            body["prompt_id"] = prompt_id
        lines = self._daemon.ensure(json.dumps(body).encode())
        try:
            while True:
                self._check()
                item = lines.next(LOOK_UP_S)
                if item is Lines.END:
                    return "the connection ended"
                if isinstance(item, Unreachable):
                    return str(item)
                if isinstance(item, tuple):
                    if item[0] in (429, 503) or (item[0] == 404 and "worker" in item[1]):
                        return "HTTP %d %s" % item  # busy, or restarted: the reporter says hello again
                    return {"failed": {"kind": "not_found" if item[0] == 400 else "refused", "message": "HTTP %d %s" % item}}
                if item is not None:
                    state.heard += 1
                    if (item.get("failed") or {}).get("kind") in PASSING:
                        return str(item["failed"].get("message") or item["failed"]["kind"])
                    if "ready" in item or "failed" in item:
                        return item
                    state.update(item.get("progress"))
                state.log()
                if first_word_by is not None and not state.heard and self._clock() >= first_word_by:
                    return "it says nothing"
                if self._clock() >= deadline:
                    return "timeout"
        finally:
            lines.close()

    def _pause(self):
        stop = self._clock() + RECONNECT_PAUSE_S
        while self._clock() < stop:
            self._check()
            time.sleep(LOOK_UP_S)

    def _check(self):
        try:
            self.check_interrupt()
        except Exception as error:
            raise _Interrupted(error) from None


class _Progress:
    """What the daemon last said of a fetch, and when it was last put into the log."""

    def __init__(self, model, clock):
        self.heard = 0
        self._model = model
        self._clock = clock
        self._logged = clock()
        self._done = self._total = self._rate = 0

    def update(self, progress):
        if isinstance(progress, dict):
            self._done, self._total, self._rate = (
                progress[key] if isinstance(progress.get(key), (int, float)) else 0 for key in ("done_bytes", "total_bytes", "bytes_per_second"))

    def log(self):
        if self._clock() - self._logged >= PROGRESS_EVERY_S:
            self._logged = self._clock()
            log.info("tierd: %s: %s", self._model, self.text())

    def text(self):
        if not self._total:
            return "waiting for tierd to begin"
        text = "%d %% of %s" % (100 * self._done // self._total, _bytes(self._total))
        if self._rate > 0:
            text += ", %s/s, about %s left" % (_bytes(self._rate), _duration((self._total - self._done) / self._rate))
        return text


def _model(folder, name):
    return "%s/%s" % (folder, name.replace(os.sep, "/"))


def _is_mark(path):
    return os.path.islink(path) and not os.path.exists(path)


def _is_unknown(failed):
    kind = str(failed.get("kind", "")).lower()
    return "unknown" in kind or "not_found" in kind


def _sentence(failed):
    parts = [str(failed.get("message") or failed.get("kind") or "it gave no reason"), str(failed.get("advice") or "")]
    return ". ".join(part.strip().rstrip(".") for part in parts if part.strip())[:1000]


def _bytes(count):
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return "%.*f %s" % (0 if unit == "B" or count >= 100 else 1, count, unit)
        count /= 1000.0
    return "%.1f TB" % count


def _duration(seconds):
    if seconds < 120:
        return "%d s" % seconds
    return "%d min" % (seconds / 60) if seconds < 7200 else "%.1f h" % (seconds / 3600)
