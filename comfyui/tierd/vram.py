# SPDX-License-Identifier: Apache-2.0
"""What ComfyUI holds on each device, and from which files: read, never changed.

All of this runs on ComfyUI's own prompt thread, from inside a hook, and hands over plain numbers. Another thread
may not do it: holding a patcher there, even for an instant, could make it the one on which the patcher dies, and a
patcher that dies moves weights. Nothing here waits for a lock or for the GPU, and no file is touched.
"""

import os
import threading
import time
import weakref

HOST_DEVICES = ("cpu", "mps", "meta")  # memory that is not VRAM
MODEL_EXTENSIONS = (".ckpt", ".pt", ".pt2", ".bin", ".pth", ".safetensors", ".pkl", ".sft", ".gguf")
PARAMETERS_MAX = 4096  # looked at, for one model, once
PARAMETERS_SECONDS_MAX = 0.001
READS_MAX = 64  # files remembered for the node that runs now
MODELS_MAX = 256  # reported for one device


class Sources:
    """Which files a loaded model came from."""

    def __init__(self):
        self._from_reads = weakref.WeakKeyDictionary()  # ComfyUI's model object -> [path]
        self._found = weakref.WeakKeyDictionary()  # ComfyUI's model object -> [(path, bytes or None)]
        self._local = threading.local()

    def read(self, where, path):
        """A file was read by the node `where` (anything that tells nodes apart) on this thread."""
        local = self._local
        # A read after a model was made belongs to the next model, even in one node.
        if getattr(local, "where", None) != where or getattr(local, "made", True):
            local.where, local.made, local.paths = where, False, []
        if path not in local.paths and len(local.paths) < READS_MAX:
            local.paths.append(path)

    def made(self, where, patcher):
        """A patcher was made. Its model, unless known already, came from what this node has read since the last one."""
        local, model = self._local, getattr(patcher, "model", None)
        if model is None or model in self._from_reads:
            return  # a clone: a LoRA node reads the LoRA, not the model
        same_node = getattr(local, "where", None) == where
        self._from_reads[model] = list(local.paths) if same_node else []
        if same_node:
            local.made = True

    def files(self, patcher):
        """[(path, bytes of the model that came from it, or None if only the sizes of the files can tell)]"""
        model = getattr(patcher, "model", None)
        if model is None:
            return []
        try:
            found = self._found.get(model)
            if found is None:
                found = _from_parameters(model) or _from_loader(patcher) or [(path, None) for path in self._from_reads.get(model, [])]
                self._found[model] = found
            return found
        except Exception:
            return []  # a model that cannot be looked into hides no other


def _from_parameters(model):
    """Newer ComfyUI writes the file's path on each tensor's storage."""
    sizes, stop = {}, time.perf_counter() + PARAMETERS_SECONDS_MAX
    parameters = getattr(model, "parameters", None)
    if parameters is None:
        return []
    for number, parameter in enumerate(parameters()):
        if number >= PARAMETERS_MAX or (number % 64 == 63 and time.perf_counter() > stop):
            break
        tensor = getattr(parameter, "_qdata", parameter)
        try:
            storage = tensor.untyped_storage()
            path = getattr(storage, "_comfy_source_path", None)
            if path:
                sizes[path] = sizes.get(path, 0) + tensor.numel() * tensor.element_size()
        except Exception:
            continue  # a tensor without a storage of its own says nothing
    return list(sizes.items())


def _from_loader(patcher):
    """ComfyUI of 2026 keeps the loader's call, to be able to repeat it: its arguments name the files."""
    init = getattr(patcher, "cached_patcher_init", None)
    if not isinstance(init, (tuple, list)) or len(init) < 2 or not isinstance(init[1], (tuple, list)):
        return []
    paths = []
    for argument in init[1]:
        for value in argument if isinstance(argument, (tuple, list)) else (argument,):
            if isinstance(value, str) and os.path.isabs(value) and value.lower().endswith(MODEL_EXTENSIONS):
                paths.append(value)
    return [(path, None) for path in dict.fromkeys(paths)]


class Snapshot:
    """Takes the state of all devices. One at a time; who comes second leaves it to the first."""

    def __init__(self, modules, sources):
        self._modules = modules
        self._sources = sources
        self._devices = {}  # (type, index) -> what is known of the device
        self._busy = threading.Lock()

    def take(self, in_prompt, measure, host=False):
        """The state as plain data, or None if someone else is at it. `measure` asks the driver for free memory too.

        `host` includes memory that is not VRAM; only tests and `--cpu` by hand want that.
        """
        if not self._busy.acquire(blocking=False):
            return None
        try:
            return self._take(in_prompt, measure, host)
        finally:
            self._busy.release()

    def _take(self, in_prompt, measure, host):
        management = self._modules.get("comfy.model_management")
        if not self._devices:
            self._device(management.get_torch_device(), host)
        for known in self._devices.values():
            known["models"] = []
        for loaded in list(management.current_loaded_models):
            patcher = loaded.model
            device = None if patcher is None else self._device(loaded.device, host)
            if device is None or len(device["models"]) >= MODELS_MAX:
                continue
            device["models"].append({
                "files": self._sources.files(patcher),
                "bytes": _size(patcher),
                "loaded_bytes": int(patcher.loaded_size()),
                "in_use": bool(in_prompt and getattr(loaded, "currently_used", True)),
            })
            del patcher
        if measure:
            for known in self._devices.values():
                self._measure(known)
        return [{key: value for key, value in known.items() if key != "torch"} for known in self._devices.values()]

    def _device(self, device, host):
        kind = getattr(device, "type", "cpu")
        if kind in HOST_DEVICES and not host:
            return None
        index = getattr(device, "index", None)
        key = (kind, index or 0)
        if key not in self._devices:
            self._devices[key] = {
                "index": index or 0, "name": "", "uuid": "", "total_bytes": 0, "free_bytes": 0, "torch_bytes": 0,
                "models": [], "torch": getattr(self._modules.get("torch"), kind, None),
            }
            self._name(self._devices[key])
        return self._devices[key]

    def _name(self, known):
        try:
            properties = known["torch"].get_device_properties(known["index"])
            known["name"] = str(getattr(properties, "name", ""))
            known["total_bytes"] = int(getattr(properties, "total_memory", 0))
            uuid = str(getattr(properties, "uuid", "") or "")
            known["uuid"] = uuid if not uuid or uuid.startswith("GPU-") else "GPU-" + uuid
        except Exception:
            pass  # tierd knows the devices from the driver; a name is a courtesy

    def _measure(self, known):
        # Both ask counters of the driver and of the allocator; neither waits for work on the GPU.
        try:
            known["free_bytes"] = int(known["torch"].mem_get_info(known["index"])[0])
            known["torch_bytes"] = int(known["torch"].memory_reserved(known["index"]))
        except Exception:
            pass


def _size(patcher):
    # model_size() would add up all weights when it was never asked before: a load asks it, so `size` is there.
    size = getattr(patcher, "size", 0)
    return int(size if size else patcher.model_size())


def by_file(device):
    """The wire's form of a device: one entry a file. Reads sizes of files: not for ComfyUI's own thread."""
    merged = {}
    for model in device["models"]:
        for path, share in _shares(model["files"]):
            entry = merged.setdefault(path, {"file": path, "bytes": 0, "loaded_bytes": 0, "in_use": False})
            entry["bytes"] += int(model["bytes"] * share)
            entry["loaded_bytes"] += int(model["loaded_bytes"] * share)
            entry["in_use"] = entry["in_use"] or model["in_use"]
    return dict(device, models=list(merged.values())[:MODELS_MAX])


def _shares(files):
    sizes = [size if size is not None else file_bytes(path) for path, size in files]
    total = sum(sizes)
    return [(path, size / total if total else 1.0 / len(files)) for (path, _), size in zip(files, sizes)]


def file_bytes(path):
    try:
        return os.stat(path).st_size
    except OSError:
        return 0
