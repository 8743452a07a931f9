# SPDX-License-Identifier: Apache-2.0
"""Hooks: they attach where there is something to attach to, change nothing, break nothing and cost next to nothing."""

import asyncio
import importlib.util
import os
import sys
import threading
import time
import types
import unittest

import fakes
from case import Case
from tierd import hooks
from tierd.reporter import Gate

ALL = {
    "get_full_path", "get_full_path_or_raise", "load_torch_file", "ModelPatcher.__init__", "load_models_gpu", "free_memory",
    "unload_all_models", "throw_exception_if_processing_interrupted", "PromptQueue.put", "PromptExecutor.execute",
}
SLOW_MS = 5.0
ROUNDS_MAX = 6
CALLS = 300


class Attaching(Case):
    def test_all_hooks_attach_to_old_and_new_comfyui_and_hello_says_so(self):
        for options in ({"dynamic": True}, {"dynamic": False}, {"dynamic": False, "context": False}):
            with self.subTest(**options):
                tierd = self.tierd()
                self.pack(tierd, **options)
                hello = tierd.wait_path("/hello")[0]["body"]
                self.assertEqual(hello["hooks"], dict.fromkeys(ALL, "attached"))
                self.assertEqual(hello["pid"], os.getpid())
                self.assertEqual(hello["address"], "http://127.0.0.1:8188")
                self.assertEqual(hello["comfyui_version"], "0.38.0" if options["dynamic"] else "0.3.64")
                self.assertEqual(hello["folders"]["vae"], [os.path.join(self.folder, "vae")])
                self.assertNotIn("custom_nodes", hello["folders"])

    def test_a_function_that_this_comfyui_lacks_is_absent_and_the_rest_works(self):
        for missing in sorted(ALL - {"get_full_path"}):
            with self.subTest(missing=missing):
                tierd = self.tierd()
                pack = self.pack(tierd, without=(missing,))
                states = tierd.wait_path("/hello")[0]["body"]["hooks"]
                self.assertEqual(states, dict(dict.fromkeys(ALL, "attached"), **{missing: "absent"}))
                pack.reporter.event("file_read", file="/x", seconds=0.1)
                tierd.wait_event("file_read")

    def test_what_cannot_be_replaced_is_failed_with_the_reason(self):
        class Closed(types.ModuleType):
            def __setattr__(self, name, value):
                raise TypeError("closed")

        modules = self.comfy()
        closed = Closed("comfy.utils")
        closed.__dict__["load_torch_file"] = modules["comfy.utils"].load_torch_file
        modules["comfy.utils"] = closed
        pack = self.pack(self.nobody(), modules=modules)
        self.assertEqual(pack.reporter.hooks["load_torch_file"], "failed: closed")
        self.assertEqual(pack.reporter.hooks["load_models_gpu"], "attached")

    def test_names_that_were_imported_before_are_replaced_too(self):
        modules = self.comfy()
        other = modules["comfy.clip_vision"] = types.ModuleType("comfy.clip_vision")
        other.load_torch_file = modules["comfy.utils"].load_torch_file
        self.pack(self.nobody(), modules=modules)
        self.assertIs(other.load_torch_file, modules["comfy.utils"].load_torch_file)
        self.assertTrue(other.load_torch_file.hooked_by_tierd)

    def test_a_hook_that_comfyui_takes_out_again_is_no_longer_called_attached(self):
        modules = self.comfy()
        original = modules["comfy.model_management"].load_models_gpu
        tierd = self.tierd()
        pack = self.pack(tierd, modules=modules)
        tierd.wait_path("/report")
        modules["comfy.model_management"].load_models_gpu = original
        pack.reporter._hello_at = None
        states = tierd.wait_path("/hello", 2)[1]["body"]["hooks"]
        self.assertEqual(states, dict(dict.fromkeys(ALL, "attached"), load_models_gpu="failed: ComfyUI put the original back"))

    def test_a_second_copy_of_the_pack_stays_off(self):
        self.pack(self.nobody())
        self.assertIsNone(hooks.start(self.nobody(), self.modules))

    def test_without_comfyui_nothing_happens(self):
        self.assertIsNone(hooks.start({}, {}))

    def test_an_address_that_is_not_this_machine_keeps_the_pack_off(self):
        modules = self.comfy()
        self.assertIsNone(hooks.start({"TIERD_ADDRESS": "http://10.0.0.1:80"}, modules))
        self.assertFalse(hasattr(modules["folder_paths"].get_full_path, "hooked_by_tierd"))

    def test_comfyui_can_import_the_folder_as_it_imports_custom_nodes(self):
        folder = os.path.join(os.path.dirname(fakes.HERE), "tierd")
        name = folder.replace(".", "_x_")
        spec = importlib.util.spec_from_file_location(name, os.path.join(folder, "__init__.py"))
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        finally:
            for loaded in [key for key in sys.modules if key.startswith(name)]:
                del sys.modules[loaded]
        self.assertEqual((module.NODE_CLASS_MAPPINGS, module.NODE_DISPLAY_NAME_MAPPINGS), ({}, {}))


class ChangingNothing(Case):
    def test_arguments_results_and_exceptions_pass_as_they_are(self):
        self.pack(self.nobody())
        seen = []

        def original(*args, **kwargs):
            seen.append((args, kwargs))
            if kwargs.get("fail"):
                raise KeyError("mine")
            return "result"

        hooked = hooks._around(original, before=lambda args, kwargs: 1, after=lambda *_: None)
        self.assertEqual(hooked(1, "two", three=3), "result")
        with self.assertRaises(KeyError):
            hooked(fail=True)
        self.assertEqual(seen, [((1, "two"), {"three": 3}), ((), {"fail": True})])

    def test_new_and_old_signatures_are_called_through(self):
        for dynamic in (True, False):
            with self.subTest(dynamic=dynamic):
                self.pack(self.nobody(), dynamic=dynamic)
                path = self.file("vae/a.safetensors")
                patcher = self.patcher()
                management, utils = self.modules["comfy.model_management"], self.modules["comfy.utils"]
                if dynamic:
                    self.assertEqual(utils.load_torch_file(path, return_metadata=True), ({"w": path}, {}))
                    management.load_models_gpu([patcher], memory_required=1, force_full_load=True)
                    management.free_memory(1, patcher.load_device, for_dynamic=True, pins_required=3)
                else:
                    management.load_models_gpu([patcher], 7)
                self.assertEqual(utils.load_torch_file(ckpt=path), {"w": path})
                with self.assertRaises(TypeError):
                    management.load_models_gpu([patcher], no_such_argument=1)
                with self.assertRaises(ValueError):
                    utils.load_torch_file("/does/not/exist")
                self.assertEqual(self.run_prompt(lambda: 5), 5)

    def test_a_mistake_in_a_hook_never_reaches_comfyui(self):
        pack = self.pack(self.nobody())

        def broken(*_args, **_kwargs):
            raise RuntimeError("a mistake of the pack")

        pack.reporter.event = pack.sources.read = pack.sources.made = pack.snapshot.take = pack.waiter._wanted = broken
        path, patcher = self.file("vae/a.safetensors"), None

        def node():
            nonlocal patcher
            patcher = self.model(path)
            self.modules["comfy.model_management"].load_models_gpu([patcher])
            self.modules["comfy.model_management"].throw_exception_if_processing_interrupted()
            return self.modules["folder_paths"].get_full_path("vae", "missing.safetensors")

        with self.assertLogs("tierd", "WARNING") as logs:
            self.modules["execution"].PromptQueue().put((0, "p", {}, {}, []))
            pack.reporter.gate = Gate(True, 1)
            for _ in range(2):
                self.assertIsNone(self.run_prompt(node))
        complaints = [line for line in logs.output if "a hook failed" in line]
        self.assertEqual(len(complaints), hooks.COMPLAINTS_MAX, "it complains, but not for ever")

    def test_an_exception_of_a_node_ends_the_prompt_and_is_still_comfyuis(self):
        tierd = self.tierd()
        pack = self.pack(tierd)
        with self.assertRaises(ZeroDivisionError):
            self.run_prompt(lambda: 1 // 0)
        self.assertEqual(tierd.wait_event("prompt_ended")[0]["ok"], False)
        self.assertFalse(pack.prompts.running())

    def test_coroutines_stay_coroutines(self):
        notes = []

        async def original(value):
            await asyncio.sleep(0)
            if value is None:
                raise KeyError("mine")
            return value

        hooked = hooks._around(original, lambda args, kwargs: notes.append("before"), lambda *rest: notes.append("after"))
        self.assertEqual(asyncio.run(hooked(3)), 3)
        with self.assertRaises(KeyError):
            asyncio.run(hooked(None))
        self.assertEqual(notes, ["before", "after"] * 2)


class Cost(Case):
    """A dead, slow or absent tierd delays nothing by more than 5 ms.

    Each call is timed beside the same call without the pack, one after the other, so that a machine which is busy with
    something else delays both; and one round of several that is quiet enough shows what the hooks cost.
    """

    def delay(self, hooked, plain, rounds=ROUNDS_MAX):
        """By how much the 99th percentile of `hooked` is above that of `plain`, in ms, in the best round."""
        best = None
        for _ in range(rounds):
            times = ([], [])
            for _ in range(CALLS):
                for work, taken in zip((hooked, plain), times):
                    started = time.perf_counter()
                    work()
                    taken.append((time.perf_counter() - started) * 1000)
            p99 = [sorted(taken)[CALLS * 99 // 100] for taken in times]
            best = min(best, p99[0] - p99[1]) if best is not None else p99[0] - p99[1]
            if best < SLOW_MS:
                break
        return best

    def environments(self):
        mute, dead = self.tierd(), self.tierd()
        mute.mute = True
        dead.stop()
        open(dead.path, "w").close()  # a file where the socket was
        return {"absent": self.nobody(), "dead": dead.environ(), "slow": mute.environ(), "well": self.tierd().environ()}

    def calls(self, modules, path):
        """What ComfyUI calls, by name."""
        self.modules = modules
        patchers = [self.patcher(size=100) for _ in range(8)]
        management, paths, read = modules["comfy.model_management"], modules["folder_paths"], modules["comfy.utils"].load_torch_file
        make, execution, device = modules["comfy.model_patcher"].ModelPatcher, modules["execution"], fakes.Device()
        queue = execution.PromptQueue()

        def load(some):
            management.load_models_gpu(some)
            management.current_loaded_models.clear()

        def node():
            read(path)
            load([make(fakes.Model(), device, None, 100)])
            management.throw_exception_if_processing_interrupted()
            return paths.get_full_path("vae", "b.safetensors")

        return {
            "get_full_path": lambda: paths.get_full_path("vae", "a.safetensors"),
            "get_full_path, missing": lambda: paths.get_full_path("vae", "b.safetensors"),
            "load_torch_file": lambda: read(path),
            "ModelPatcher": lambda: make(fakes.Model(), device, None, 100),
            "load_models_gpu": lambda: load(patchers),
            "interrupted?": management.throw_exception_if_processing_interrupted,
            "queued": lambda: queue.put((0, "p", {}, {}, [])),
            "a prompt": lambda: execution.PromptExecutor().execute([node], "p", {}),
        }

    def test_no_hook_and_no_prompt_is_delayed(self):
        for name, environ in self.environments().items():
            with self.subTest(tierd=name):
                plain, hooked = self.comfy(), self.comfy()
                self.pack(environ, modules=hooked)
                path = self.file("vae/a.safetensors")
                plain = self.calls(plain, path)
                for hook, work in self.calls(hooked, path).items():
                    delay = self.delay(work, plain[hook])
                    if os.environ.get("TIERD_SHOW_COST"):
                        print("%-7s %-23s + %.3f ms (p99 of %d)" % (name, hook, delay, CALLS))
                    self.assertLess(delay, SLOW_MS, hook)

    def test_a_hook_that_talks_to_the_daemon_itself_would_be_noticed(self):
        """The measure above sees what it is there for."""
        tierd = self.tierd()
        plain, hooked = self.comfy(), self.comfy()
        pack = self.pack(tierd, modules=hooked)
        pack.reporter.event = lambda *_args, **_fields: threading.Event().wait(0.006)
        path = self.file("vae/a.safetensors")
        plain = self.calls(plain, path)
        self.assertGreaterEqual(self.delay(self.calls(hooked, path)["queued"], plain["queued"], rounds=1), SLOW_MS)


if __name__ == "__main__":
    unittest.main()
