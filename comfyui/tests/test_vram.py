# SPDX-License-Identifier: Apache-2.0
"""What is on a device, and from which file: found in three ways, on ComfyUI's own thread, and sent as state."""

import gc
import os
import threading
import types
import unittest

import fakes
from case import Case
from tierd import hooks, vram


class FromWhichFile(Case):
    def loaded(self, patcher, pack):
        self.modules["comfy.model_management"].load_models_gpu([patcher])
        return [vram.by_file(device) for device in pack.reporter._devices][0]["models"]

    def files(self, patcher, pack):
        return {model["file"]: model["bytes"] for model in self.loaded(patcher, pack)}

    def test_a_tensor_that_names_its_file_is_believed_first(self):
        pack = self.pack(self.nobody())
        a, b = self.file("vae/a.safetensors"), self.file("vae/b.safetensors")
        parameters = [fakes.Parameter(30, a)] * 2 + [fakes.Parameter(20, b), fakes.Parameter(5)]
        patcher = self.run_prompt(lambda: self.model(self.file("vae/read.safetensors"), size=200, parameters=parameters))
        patcher.cached_patcher_init = (None, ("/models/other.safetensors",))
        self.assertEqual(self.files(patcher, pack), {a: 150, b: 50})

    def test_then_the_arguments_of_the_loader(self):
        pack = self.pack(self.nobody())
        a, b = self.file("vae/a.safetensors", 300), self.file("vae/b.safetensors", 100)
        patcher = self.run_prompt(lambda: self.model(self.file("vae/read.safetensors"), size=400))
        patcher.cached_patcher_init = (lambda: None, ([a, b], "/some/folder", {"option": a}, None, 3), 1)
        self.assertEqual(self.files(patcher, pack), {a: 300, b: 100})

    def test_then_the_files_that_the_same_node_has_read(self):
        for options in ({"dynamic": True}, {"dynamic": False}, {"dynamic": False, "context": False}):
            with self.subTest(**options):
                pack = self.pack(self.nobody(), **options)
                read = self.modules["comfy.utils"].load_torch_file
                a, b, c = (self.file("vae/%s.safetensors" % name, size) for name, size in (("a", 300), ("b", 100), ("c", 50)))
                made = []

                def two_encoders():
                    read(a), read(b)
                    made.append(self.patcher(size=400))

                def checkpoint():
                    read(c)
                    made.extend([self.patcher(size=40), self.patcher(size=10)])

                self.run_prompt(two_encoders, checkpoint)
                self.assertEqual(self.files(made[0], pack), {a: 300, b: 100})
                self.modules["comfy.model_management"].load_models_gpu(made[1:])
                self.assertEqual(self.files(made[2], pack)[c], 60, "the model that was loaded twice counts twice")

    def test_a_lora_does_not_become_the_file_of_the_model_that_it_changes(self):
        pack = self.pack(self.nobody())
        base, lora = self.file("diffusion_models/base.safetensors"), self.file("loras/style.safetensors")
        made = []
        self.run_prompt(
            lambda: made.append(self.model(base)),
            lambda: (self.modules["comfy.utils"].load_torch_file(lora), made.append(made[0].clone())),
        )
        self.assertEqual(list(self.files(made[1], pack)), [base])

    def test_a_model_that_came_from_nowhere_is_not_reported_under_a_name(self):
        pack = self.pack(self.nobody())
        self.run_prompt(lambda: self.modules["comfy.utils"].load_torch_file(self.file("vae/a.safetensors")))
        self.assertEqual(self.files(self.run_prompt(self.patcher, prompt_id="p2"), pack), {})

    def test_a_model_that_cannot_be_looked_into_hides_no_other(self):
        pack = self.pack(self.nobody())
        path = self.file("vae/a.safetensors")
        good = self.run_prompt(lambda: self.model(path))
        odd = self.patcher()
        odd.model.parameters = lambda: 1 // 0
        self.modules["comfy.model_management"].load_models_gpu([odd])
        self.assertEqual(self.files(good, pack), {path: 100})

    def test_the_pack_keeps_no_model_alive(self):
        pack = self.pack(self.nobody())
        patcher = self.run_prompt(lambda: self.model(self.file("vae/a.safetensors")))
        self.loaded(patcher, pack)
        model = fakes.weakref.ref(patcher.model)
        self.modules["comfy.model_management"].unload_all_models()
        del patcher
        gc.collect()
        self.assertIsNone(model())


class OnWhichDevice(Case):
    def torch(self, calls):
        def properties(index):
            return types.SimpleNamespace(name="a GPU", total_memory=1000, uuid="12ab")

        def memory(index):
            calls.append(threading.get_ident())
            return (600, 1000)

        return types.SimpleNamespace(get_device_properties=properties, mem_get_info=memory, memory_reserved=lambda index: 250)

    def test_a_device_is_told_whole_and_empty_when_it_is_empty(self):
        tierd, modules, calls = self.tierd(), self.comfy(), []
        modules["torch"] = types.SimpleNamespace(cuda=self.torch(calls))
        self.pack(tierd, modules=modules)
        path = self.file("vae/a.safetensors")
        management = self.modules["comfy.model_management"]

        def node():
            management.load_models_gpu([self.model(path, size=80)])
            tierd.wait(lambda call: call["body"].get("devices") and call["body"]["devices"][0]["models"])
            return None

        self.run_prompt(node)
        device = tierd.wait(lambda call: call["body"].get("devices") and call["body"]["devices"][0]["models"])[0]["body"]["devices"][0]
        self.assertEqual(device, {
            "index": 0, "name": "a GPU", "uuid": "GPU-12ab", "total_bytes": 1000, "free_bytes": 600, "torch_bytes": 250,
            "models": [{"file": path, "bytes": 80, "loaded_bytes": 80, "in_use": True}],
        })
        self.assertEqual(set(calls), {threading.get_ident()}, "asked on ComfyUI's thread alone")
        seen = len(tierd.calls)
        management.unload_all_models()
        tierd.wait(lambda call: tierd.calls.index(call) >= seen and call["body"].get("devices") and not call["body"]["devices"][0]["models"])

    def test_memory_of_the_host_is_not_vram(self):
        pack = self.pack(self.nobody(), device=fakes.Device("cpu", None))
        patcher = self.patcher()
        self.modules["comfy.model_management"].load_models_gpu([patcher])
        self.assertEqual(pack.reporter._devices, [])
        self.assertEqual(len(pack.snapshot.take(True, False, host=True)[0]["models"]), 1)

    def test_in_use_means_that_a_prompt_runs(self):
        pack = self.pack(self.nobody())
        patcher = self.patcher()
        use = []

        def node():
            self.modules["comfy.model_management"].load_models_gpu([patcher])
            use.append(pack.reporter._devices[0]["models"][0]["in_use"])

        self.run_prompt(node)
        self.assertEqual(use + [pack.reporter._devices[0]["models"][0]["in_use"]], [True, False])


class When(Case):
    def pack_with_counter(self):
        pack = self.pack(self.nobody())
        taken, take = [], pack.snapshot.take
        pack.snapshot.take = lambda *args: (taken.append(threading.get_ident()), take(*args))[1]
        return pack, taken

    def test_during_a_load_nothing_is_looked_at(self):
        modules = self.comfy()
        management = modules["comfy.model_management"]
        load, seen = management.load_models_gpu, []

        def slow_load(models):
            load(models)  # its own free_memory is nested
            pack._snapshot_at = -hooks.SNAPSHOT_EVERY_S
            management.throw_exception_if_processing_interrupted()
            seen.append(len(taken))

        management.load_models_gpu = slow_load
        pack = self.pack(self.nobody(), modules=modules)
        taken, take = [], pack.snapshot.take
        pack.snapshot.take = lambda *args: (taken.append(1), take(*args))[1]
        self.run_prompt(lambda: management.load_models_gpu([self.patcher()]))
        self.assertEqual((seen, len(taken)), ([0], 2), "none during the load, one after it, one after the prompt")

    def test_once_a_second_while_a_prompt_runs_and_only_on_its_thread(self):
        pack, taken = self.pack_with_counter()
        check = self.modules["comfy.model_management"].throw_exception_if_processing_interrupted

        def node():
            for _ in range(100):
                check()
            before = len(taken)
            pack._snapshot_at -= hooks.SNAPSHOT_EVERY_S
            elsewhere = threading.Thread(target=check)
            elsewhere.start(), elsewhere.join()
            middle = len(taken)
            for _ in range(100):
                check()
            return before, middle, len(taken)

        pack._snapshot_at = hooks.time.monotonic()
        self.assertEqual(self.run_prompt(node), (0, 0, 1))

    def test_a_load_that_fails_does_not_silence_the_pack(self):
        pack, taken = self.pack_with_counter()
        with self.assertRaises(TypeError):
            self.modules["comfy.model_management"].load_models_gpu(None)
        self.modules["comfy.model_management"].load_models_gpu([])
        self.assertEqual((len(taken), pack._moving), (2, 0))

    def test_a_snapshot_that_is_under_way_is_not_waited_for(self):
        pack = self.pack(self.nobody())
        with pack.snapshot._busy:
            self.assertIsNone(pack.snapshot.take(False, False))


if __name__ == "__main__":
    unittest.main()
