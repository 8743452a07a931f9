# SPDX-License-Identifier: Apache-2.0
"""Where the pack takes hold of ComfyUI: functions are replaced by ones that call them and take notes.

A hook passes on whatever arguments it is given, returns what ComfyUI returned and lets ComfyUI's exceptions through;
what goes wrong in its own part is logged a few times and otherwise ignored. A function that this ComfyUI does not
have is reported as absent, and the rest works. The one hook that waits, or raises by itself, is the gate's.
"""

import functools
import inspect
import logging
import os
import sys
import threading
import time
import types

from .gate import Waiter
from .reporter import Reporter
from .vram import Snapshot, Sources
from .wire import Daemon, Settings

log = logging.getLogger("tierd")

SNAPSHOT_EVERY_S = 1.0
COMPLAINTS_MAX = 5  # about its own mistakes, in one run of ComfyUI
_complaints = 0


def start(environ=os.environ, modules=sys.modules):
    """Attaches to the ComfyUI that imported this pack. Returns the `Pack`, or None where there is no ComfyUI."""
    if "folder_paths" not in modules:
        return None
    if getattr(modules["folder_paths"].get_full_path, "hooked_by_tierd", False):
        log.warning("tierd: another copy of the pack is at work already; this one stays off")
        return None
    settings = Settings(environ)
    if settings.problem:
        log.error("tierd: %s. The pack stays off", settings.problem)
        return None
    pack = Pack(settings, modules)
    pack.attach()
    pack.reporter.start()
    return pack


class Prompts:
    """Which prompt runs, and on which thread."""

    def __init__(self, modules):
        self._modules = modules
        self._by_thread = {}

    def begin(self, prompt_id):
        self._by_thread[threading.get_ident()] = prompt_id

    def end(self):
        self._by_thread.pop(threading.get_ident(), None)

    def running(self):
        return bool(self._by_thread)

    def owns_thread(self):
        return threading.get_ident() in self._by_thread

    def here(self):
        """The id of the prompt that this very call is part of; "" if it has none; None if it is part of no prompt."""
        context = self.node()
        if context is not None:
            return str(getattr(context, "prompt_id", "") or "")
        return self._by_thread.get(threading.get_ident())

    def node(self):
        """ComfyUI's record of the node that runs now, where this ComfyUI keeps one."""
        get = getattr(self._modules.get("comfy_execution.utils"), "get_executing_context", None)
        return get() if get is not None else None

    def where(self):
        """Something that is the same for two calls of one node, and else as different as can be told."""
        context = self.node()
        if context is None:
            return ("prompt", self._by_thread.get(threading.get_ident()))
        return (getattr(context, "prompt_id", None), getattr(context, "node_id", None))


class Pack:
    def __init__(self, settings, modules):
        self.modules = modules
        self.daemon = Daemon(settings)
        self.reporter = Reporter(self.daemon, modules)
        self.prompts = Prompts(modules)
        self.sources = Sources()
        self.snapshot = Snapshot(modules, self.sources)
        self.waiter = Waiter(Daemon(settings), self.reporter, self.prompts, modules)
        self._moving = 0  # loads and unloads under way, nested ones counted
        self._moving_lock = threading.Lock()
        self._snapshot_at = 0.0
        self._hooked = {}  # name -> (owner, attribute, original)
        self.reporter.before_hello = self._look_after_hooks

    def attach(self):
        """Puts all hooks in place. What became of each is in `reporter.hooks`, which hello sends."""
        gate = self.waiter
        self._hook("folder_paths", "get_full_path", replace=lambda original, args, kwargs: gate.find(original, args, kwargs))
        self._hook("folder_paths", "get_full_path_or_raise", replace=lambda original, args, kwargs: gate.demanding(original, args, kwargs))
        self._hook("comfy.utils", "load_torch_file", before=lambda args, kwargs: time.perf_counter(), after=self._file_read)
        self._hook("comfy.model_patcher", "ModelPatcher.__init__", after=self._patcher_made)
        for name in ("load_models_gpu", "free_memory", "unload_all_models"):
            self._hook("comfy.model_management", name, before=self._moving_begins, after=self._moving_ends)
        check = self._hook("comfy.model_management", "throw_exception_if_processing_interrupted", after=self._tick)
        if check is not None:
            gate.check_interrupt = check
        self._hook("execution", "PromptQueue.put", after=self._prompt_queued)
        self._hook("execution", "PromptExecutor.execute", before=self._prompt_begins, after=self._prompt_ends)
        attached = sum(status == "attached" for status in self.reporter.hooks.values())
        log.info("tierd: %d of %d hooks attached%s", attached, len(self.reporter.hooks), "" if attached == len(self.reporter.hooks) else
                 ": " + ", ".join("%s %s" % item for item in self.reporter.hooks.items() if item[1] != "attached"))

    def _hook(self, module, name, before=None, after=None, replace=None):
        """Replaces one function. Returns the original, or None if there is none to replace."""
        try:
            owner, attribute = self.modules.get(module), name
            if "." in name:
                class_name, attribute = name.split(".", 1)
                owner = getattr(owner, class_name, None)
            original = getattr(owner, attribute, None)
            if owner is None or not callable(original):
                self.reporter.hooks[name] = "absent"
                return None
            hooked = _replacing(original, replace) if replace else _around(original, before, after)
            hooked.hooked_by_tierd = True
            setattr(owner, attribute, hooked)
            if isinstance(owner, types.ModuleType):
                self._replace_imported(attribute, original, hooked)
            self.reporter.hooks[name] = "attached"
            self._hooked[name] = (owner, attribute, original)
            return original
        except Exception as error:
            self.reporter.hooks[name] = "failed: %s" % error
            return None

    def _look_after_hooks(self):
        """ComfyUI puts some functions back that node packs replaced: then tierd should know that it hears nothing from there."""
        for name, (owner, attribute, original) in self._hooked.items():
            if getattr(owner, attribute, None) is original:
                self.reporter.hooks[name] = "failed: ComfyUI put the original back"

    def _replace_imported(self, name, original, hooked):
        """`from module import name` made copies of the reference: those are replaced too."""
        for module in list(self.modules.values()):
            if isinstance(module, types.ModuleType) and module.__dict__.get(name) is original:
                module.__dict__[name] = hooked

    # Notes. Each runs on ComfyUI's threads and must be quick: no file, no network, no wait.

    def _file_read(self, started, args, kwargs, _result, error):
        seconds = time.perf_counter() - started
        path = args[0] if args else kwargs.get("ckpt")
        if error is not None or not isinstance(path, (str, os.PathLike)):
            return
        path = os.path.abspath(os.fspath(path))
        self.sources.read(self.prompts.where(), path)
        prompt_id = self.prompts.here()
        self.reporter.event("file_read", file=path, seconds=round(seconds, 6), **({"prompt_id": prompt_id} if prompt_id else {}))

    def _patcher_made(self, _before, args, _kwargs, _result, error):
        if error is None:
            self.sources.made(self.prompts.where(), args[0])

    def _prompt_queued(self, _before, args, kwargs, _result, error):
        item = args[1] if len(args) > 1 else kwargs.get("item")
        if error is None:
            self.reporter.event("prompt_queued", prompt_id=str(item[1]))

    def _prompt_begins(self, args, kwargs):
        prompt_id = str(args[2] if len(args) > 2 else kwargs.get("prompt_id", ""))
        self.prompts.begin(prompt_id)
        self.reporter.event("prompt_started", prompt_id=prompt_id)
        return prompt_id

    def _prompt_ends(self, prompt_id, args, _kwargs, _result, error):
        self.prompts.end()
        ok = error is None and bool(getattr(args[0], "success", True))
        self.reporter.event("prompt_ended", prompt_id=prompt_id or "", ok=ok)
        self._take_snapshot(measure=True)

    def _moving_begins(self, _args, _kwargs):
        with self._moving_lock:
            self._moving += 1

    def _moving_ends(self, _before, _args, _kwargs, _result, _error):
        with self._moving_lock:
            self._moving -= 1
            outermost = not self._moving
        if outermost:
            self._take_snapshot(measure=True)

    def _tick(self, *_ignored):
        # ComfyUI asks this often, on the thread of the prompt: a clock that never ticks during a load.
        due = time.monotonic() - self._snapshot_at >= SNAPSHOT_EVERY_S
        if due and not self._moving and self.prompts.owns_thread():
            self._take_snapshot(measure=False)

    def _take_snapshot(self, measure):
        self._snapshot_at = time.monotonic()
        devices = self.snapshot.take(self.prompts.running(), measure)
        if devices is not None:
            self.reporter.devices(devices)


def _around(original, before, after):
    """`original`, with `before` and `after` around it. Neither can change what it does, or fail it."""

    def finish(token, args, kwargs, result, error):
        if after is not None:
            _quiet(after, token, args, kwargs, result, error)

    if inspect.iscoroutinefunction(original):
        @functools.wraps(original)
        async def hooked(*args, **kwargs):
            token = _quiet(before, args, kwargs) if before is not None else None
            try:
                result = await original(*args, **kwargs)
            except BaseException as error:
                finish(token, args, kwargs, None, error)
                raise
            finish(token, args, kwargs, result, None)
            return result
    else:
        @functools.wraps(original)
        def hooked(*args, **kwargs):
            token = _quiet(before, args, kwargs) if before is not None else None
            try:
                result = original(*args, **kwargs)
            except BaseException as error:
                finish(token, args, kwargs, None, error)
                raise
            finish(token, args, kwargs, result, None)
            return result
    return hooked


def _replacing(original, replace):
    @functools.wraps(original)
    def hooked(*args, **kwargs):
        return replace(original, args, kwargs)

    return hooked


def _quiet(note, *arguments):
    global _complaints
    try:
        return note(*arguments)
    except Exception:
        _complaints += 1
        if _complaints <= COMPLAINTS_MAX:
            log.warning("tierd: a hook failed; ComfyUI goes on", exc_info=True)
        return None
