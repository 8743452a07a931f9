# SPDX-License-Identifier: Apache-2.0
"""Stand-ins for the two sides of the pack: as much of ComfyUI as it hooks, and a tierd that does as it is told.

`comfy(...)` gives the modules of a ComfyUI of 2025 or of late 2026. They are written from the outside, after what the
hooked functions do for their callers; no code of ComfyUI is in here.
"""

import http.server
import json
import os
import socketserver
import sys
import tempfile
import threading
import types
import weakref

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.dirname(HERE))

WAIT_S = 20.0  # for what must happen; nothing waits this long when all is well


class Interrupted(Exception):
    """Plays comfy.model_management.InterruptProcessingException."""


class Storage:
    pass


class Parameter:
    def __init__(self, count, path=None):
        self._count, self._storage = count, Storage()
        if path is not None:
            self._storage._comfy_source_path = path

    def untyped_storage(self):
        return self._storage

    def numel(self):
        return self._count

    def element_size(self):
        return 2


class Model:
    """Plays the torch module inside a patcher."""

    def __init__(self, parameters=()):
        self._parameters = list(parameters)
        self.loaded = 0

    def parameters(self):
        return iter(self._parameters)


class Device:
    def __init__(self, kind="cuda", index=0):
        self.type, self.index = kind, index


def comfy(folder, dynamic=True, context=True, without=(), device=None):
    """The modules of a ComfyUI whose models lie below `folder`. `dynamic`: of late 2026, with new signatures.

    `without` names functions, as hooks are named, that this ComfyUI does not have.
    """
    made = {}

    def module(name):
        made[name] = types.ModuleType(name)
        return made[name]

    paths = module("folder_paths")
    folders = ("diffusion_models", "vae", "loras", "upscale_models", "vae_approx")
    paths.folder_names_and_paths = {name: ([os.path.join(folder, name)], {".safetensors"}) for name in folders}
    paths.folder_names_and_paths["custom_nodes"] = ([os.path.join(folder, "nodes")], set())
    for name in folders:
        os.makedirs(os.path.join(folder, name), exist_ok=True)

    def get_full_path(folder_name, filename):
        for directory in paths.folder_names_and_paths.get({"unet": "diffusion_models"}.get(folder_name, folder_name), ([],))[0]:
            if os.path.isfile(os.path.join(directory, filename)):
                return os.path.join(directory, filename)
        return None

    def get_full_path_or_raise(folder_name, filename):
        found = paths.get_full_path(folder_name, filename)
        if found is None:
            raise FileNotFoundError("no such model: %s" % filename)
        return found

    paths.get_full_path, paths.get_full_path_or_raise = get_full_path, get_full_path_or_raise

    utils = module("comfy.utils")
    if dynamic:
        def load_torch_file(ckpt, safe_load=False, device=None, return_metadata=False):
            if not os.path.exists(ckpt):
                raise ValueError("no file")
            return ({"w": ckpt}, {}) if return_metadata else {"w": ckpt}
    else:
        def load_torch_file(ckpt, safe_load=False):
            if not os.path.exists(ckpt):
                raise ValueError("no file")
            return {"w": ckpt}
    utils.load_torch_file = load_torch_file

    management = module("comfy.model_management")
    management.current_loaded_models = []
    management.interrupt = False
    device = device or Device()
    management.get_torch_device = lambda: device

    class LoadedModel:
        def __init__(self, patcher):
            self._patcher, self.device, self.currently_used = weakref.ref(patcher), patcher.load_device, True

        @property
        def model(self):
            return self._patcher()

    def throw_exception_if_processing_interrupted():
        if management.interrupt:
            management.interrupt = False
            raise Interrupted()

    def load(models):
        for patcher in models:
            management.free_memory(patcher.size, patcher.load_device)
            patcher.model.loaded = patcher.size
            management.current_loaded_models.insert(0, LoadedModel(patcher))

    if dynamic:
        def load_models_gpu(models, memory_required=0, force_patch_weights=False, minimum_memory_required=None, force_full_load=False):
            load(models)

        def free_memory(memory_required, device, keep_loaded=[], for_dynamic=False, pins_required=0, ram_required=0):
            return []
    else:
        def load_models_gpu(models, memory_required=0):
            load(models)

        def free_memory(memory_required, device, keep_loaded=[]):
            return []

    def unload_all_models():
        management.free_memory(1e30, device)
        management.current_loaded_models.clear()

    management.load_models_gpu, management.free_memory, management.unload_all_models = load_models_gpu, free_memory, unload_all_models
    management.throw_exception_if_processing_interrupted = throw_exception_if_processing_interrupted

    patching = module("comfy.model_patcher")

    class ModelPatcher:
        def __init__(self, model, load_device, offload_device, size=0, weight_inplace_update=False):
            self.model, self.load_device, self.size = model, load_device, size
            if dynamic:
                self.cached_patcher_init = None

        def clone(self):
            return type(self)(self.model, self.load_device, None, self.size)

        def loaded_size(self):
            return self.model.loaded

        def model_size(self):
            raise AssertionError("adding up all weights is not for a hook")

    patching.ModelPatcher = ModelPatcher

    execution = module("execution")

    class PromptQueue:
        def __init__(self):
            self.items = []

        def put(self, item):
            self.items.append(item)

    class PromptExecutor:
        def __init__(self):
            self.success = True

        if dynamic:
            def execute(self, prompt, prompt_id, extra_data={}, execute_outputs=[]):
                return run(self, prompt, prompt_id)
        else:
            def execute(self, prompt, prompt_id, extra_data={}):
                return run(self, prompt, prompt_id)

    class Executing:
        current = threading.local()

        def __init__(self, prompt_id, node_id):
            self.prompt_id, self.node_id = prompt_id, node_id

    def run(executor, prompt, prompt_id):
        """A prompt is a list of functions here: its nodes."""
        for number, node in enumerate(prompt):
            Executing.current.value = Executing(prompt_id, str(number))
            try:
                executor.last = node()
            finally:
                Executing.current.value = None
        return executor

    execution.PromptQueue, execution.PromptExecutor = PromptQueue, PromptExecutor
    if context:
        module("comfy_execution.utils").get_executing_context = lambda: getattr(Executing.current, "value", None)

    server = module("server")
    server.PromptServer = type("PromptServer", (), {"instance": types.SimpleNamespace(loop=None)})
    module("comfyui_version").__version__ = "0.38.0" if dynamic else "0.3.64"
    module("comfy.cli_args").args = types.SimpleNamespace(listen="0.0.0.0", port=8188, tls_keyfile=None, tls_certfile=None)
    for name in without:
        owner = next(value for value in made.values() if hasattr(value, name.split(".")[0]))
        if name.endswith(".__init__"):
            name = name.split(".")[0]  # every class has one: what can be missing is the class
        elif "." in name:
            owner, name = getattr(owner, name.split(".")[0]), name.split(".")[1]
        delattr(owner, name)
    return made


class FakeTierd:
    """comfy/v1 on a Unix socket or a port. Everything that came stands in `calls`; `wait` waits for something in there."""

    def __init__(self, tcp=False):
        self.folder = tempfile.TemporaryDirectory()
        self.path = os.path.join(self.folder.name, "s")
        self.tcp = tcp
        self.calls = []
        self.workers = set()
        self.hello_answer = {"gate": True, "gate_timeout_s": 60, "report_interval_ms": 100, "models_path": "/models"}
        self.absent = []
        self.status = {}  # path -> status to answer with instead
        self.mute = False  # takes connections and requests, and never answers
        self.ensure = lambda body: iter([{"failed": {"kind": "not_found", "message": "no such model"}}])
        self._changed = threading.Condition()
        self._server = None
        self._release = threading.Event()
        self.start()

    def environ(self, **more):
        if self.tcp:
            return dict({"TIERD_ADDRESS": "http://127.0.0.1:%d" % self._server.server_address[1]}, **more)
        return dict({"TIERD_SOCKET": self.path}, **more)

    def start(self):
        fake = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def address_string(self):
                return "pack"

            def do_GET(self):
                fake._answer(self)

            do_POST = do_GET

        base = socketserver.TCPServer if self.tcp else socketserver.UnixStreamServer

        class Server(socketserver.ThreadingMixIn, base):
            daemon_threads = True
            allow_reuse_address = True

            def handle_error(self, *_):
                pass  # the pack left: that is what some tests are about

        self._release.clear()
        self._server = Server(("127.0.0.1", 0) if self.tcp else self.path, Handler)
        self._connections = []
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self):
        """Goes away as a process does: its connections end."""
        self._release.set()
        self._server.shutdown()
        self._server.server_close()
        for connection in self._connections:
            try:
                connection.shutdown(2)
            except OSError:
                pass
        if not self.tcp and os.path.exists(self.path):
            os.unlink(self.path)

    def restart(self):
        self.stop()
        self.workers.clear()
        self.start()

    def close(self):
        self.stop()
        self.folder.cleanup()

    def wait(self, wanted, count=1):
        """Waits until `count` calls satisfy `wanted`, and returns them."""
        with self._changed:
            done = self._changed.wait_for(lambda: sum(map(bool, map(wanted, self.calls))) >= count, WAIT_S)
            assert done, "did not come; there came: %r" % [(call["path"], call["status"]) for call in self.calls[-20:]]
            return [call for call in self.calls if wanted(call)]

    def wait_path(self, path, count=1):
        return self.wait(lambda call: call["path"].endswith(path), count)

    def wait_event(self, kind, count=1):
        def events():
            return [event for call in self.calls if call["status"] == 200 for event in call["body"].get("events", []) if event["kind"] == kind]

        with self._changed:
            assert self._changed.wait_for(lambda: len(events()) >= count, WAIT_S), "no %s" % kind
            return events()

    def _note(self, request, body, status):
        with self._changed:
            self.calls.append({"path": request.path, "body": body, "status": status, "headers": dict(request.headers)})
            self._changed.notify_all()

    def _answer(self, request):
        self._connections.append(request.connection)
        body = json.loads(request.rfile.read(int(request.headers.get("Content-Length") or 0)) or b"{}")
        if self.mute:
            self._note(request, body, 0)
            self._release.wait(WAIT_S)
            request.close_connection = True
            return
        name = request.path.rsplit("/", 1)[1]
        status, answer, headers = 200, {}, {}
        if name == "hello":
            self.workers.add(body["worker"])
            answer = self.hello_answer
        elif name == "report" and body["worker"] not in self.workers:
            status, answer = 404, {"error": "worker %s is not known: say hello" % body["worker"]}
        elif name == "absent":
            headers["ETag"] = '"%d"' % hash(tuple(self.absent))
            status = 304 if request.headers.get("If-None-Match") == headers["ETag"] else 200
            answer = {"models": self.absent}
        elif name == "ensure" and name not in self.status:
            return self._stream(request, body)
        if name in self.status:
            status, answer = self.status[name], {"error": "told to refuse"}
        data = b"" if status == 304 else json.dumps(answer).encode()
        request.send_response(status)
        for key, value in headers.items():
            request.send_header(key, value)
        request.send_header("Content-Length", str(len(data)))
        request.end_headers()
        request.wfile.write(data)
        self._note(request, body, status)

    def _stream(self, request, body):
        self._note(request, body, 200)
        request.send_response(200)
        request.send_header("Content-Type", "application/x-ndjson")
        request.send_header("Transfer-Encoding", "chunked")
        request.end_headers()
        for line in self.ensure(body):
            data = json.dumps(line).encode() + b"\n"
            request.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
            request.wfile.flush()
        request.wfile.write(b"0\r\n\r\n")
        request.close_connection = True
