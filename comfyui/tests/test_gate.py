# SPDX-License-Identifier: Apache-2.0
"""The gate: waits on the prompt's thread alone, for tierd's models alone, and ends in one of three ways."""

import asyncio
import os
import threading
import time
import types
import unittest

import fakes
from case import Case
from tierd import gate

MODEL, NAME = "vae/a.safetensors", "a.safetensors"


class Waiting(Case):
    def setUp(self):
        super().setUp()
        for name, value in (("LOOK_UP_S", 0.01), ("PROGRESS_EVERY_S", 0.0), ("RECONNECT_PAUSE_S", 0.02)):
            self.addCleanup(setattr, gate, name, getattr(gate, name))
            setattr(gate, name, value)

    def gated(self, tierd, absent=(MODEL,), environ=None, **options):
        """A pack that knows which models are absent."""
        tierd.absent = list(absent)
        pack = self.pack(environ or tierd, **options)
        tierd.wait_path("/absent")
        deadline = time.monotonic() + fakes.WAIT_S
        while absent and not pack.reporter.gate.is_absent(absent[0]) and time.monotonic() < deadline:
            pack.reporter._wake.set()
        return pack

    def fetch(self, model=MODEL, progress=()):
        """What tierd does when it fetches: lines of progress, the file, the end."""
        def ensure(_body):
            for line in progress:
                yield {"progress": line}
            yield {"ready": {"path": self.file(model)}}

        return ensure

    def look(self, folder="vae", name=NAME, demand=False):
        paths = self.modules["folder_paths"]
        return (paths.get_full_path_or_raise if demand else paths.get_full_path)(folder, name)

    def test_a_missing_model_is_there_when_get_full_path_returns(self):
        for options in ({"dynamic": True}, {"dynamic": False}, {"dynamic": False, "context": False}):
            for demand in (False, True):
                with self.subTest(demand=demand, **options):
                    tierd = self.tierd()
                    pack = self.gated(tierd, **options)
                    tierd.ensure = self.fetch()
                    path = self.run_prompt(lambda: self.look(demand=demand), prompt_id="p7")
                    self.assertEqual(path, os.path.join(self.folder, "vae", NAME))
                    asked = tierd.wait_path("/ensure")[0]["body"]
                    self.assertEqual(asked, {"worker": pack.reporter.worker, "model": MODEL, "prompt_id": "p7"})
                    os.unlink(path)

    def test_older_names_of_folders_and_arguments_by_name_are_understood(self):
        tierd = self.tierd()
        self.gated(tierd, absent=["diffusion_models/sub/x.safetensors"])
        os.makedirs(os.path.join(self.folder, "diffusion_models", "sub"))
        tierd.ensure = self.fetch("diffusion_models/sub/x.safetensors")
        path = self.run_prompt(lambda: self.modules["folder_paths"].get_full_path(folder_name="unet", filename="sub/x.safetensors"))
        self.assertEqual(path, os.path.join(self.folder, "diffusion_models", "sub", "x.safetensors"))

    def test_a_folder_that_a_node_pack_names_is_known_by_its_directories(self):
        tierd, modules = self.tierd(), self.comfy()
        known = modules["folder_paths"].folder_names_and_paths
        known["unet_gguf"] = (known["diffusion_models"][0], {".gguf"})
        self.gated(tierd, absent=["diffusion_models/a.gguf"], modules=modules)
        tierd.ensure = self.fetch("diffusion_models/a.gguf")
        self.assertTrue(self.run_prompt(lambda: self.look("unet_gguf", "a.gguf")))
        mark = os.path.join(self.folder, "diffusion_models", "b.gguf")
        os.symlink("/nowhere/b.gguf", mark)

        def ensure(body):
            self.assertEqual(body["model"], "diffusion_models/b.gguf")
            os.unlink(mark)
            yield {"ready": {"path": self.file(body["model"])}}

        tierd.ensure = ensure
        self.assertTrue(self.run_prompt(lambda: self.look("unet_gguf", "b.gguf")))

    def test_a_link_to_nothing_is_asked_for_even_if_the_list_is_old(self):
        tierd = self.tierd()
        self.gated(tierd, absent=["vae/other.safetensors"])
        mark = os.path.join(self.folder, "vae", NAME)
        os.symlink("/nowhere/" + NAME, mark)

        def ensure(_body):
            os.unlink(mark)
            yield {"ready": {"path": self.file(MODEL)}}

        tierd.ensure = ensure
        self.assertEqual(self.run_prompt(self.look), mark)

    def test_a_link_to_nothing_that_tierd_does_not_know_is_comfyuis_business(self):
        tierd = self.tierd()
        self.gated(tierd, absent=["vae/other.safetensors"])
        os.symlink("/nowhere/" + NAME, os.path.join(self.folder, "vae", NAME))
        self.assertIsNone(self.run_prompt(self.look))
        tierd.wait_path("/ensure")

    def test_where_comfyui_would_fail_tierd_is_asked_once(self):
        tierd = self.tierd()
        self.gated(tierd, absent=["vae/other.safetensors"])
        with self.assertRaisesRegex(FileNotFoundError, "no such model: a.safetensors"):
            self.run_prompt(lambda: self.look(demand=True))
        tierd.wait_path("/ensure")
        tierd.ensure = self.fetch()
        self.assertTrue(self.run_prompt(lambda: self.look(demand=True)))

    def test_a_file_outside_comfyuis_folders_is_still_found(self):
        tierd = self.tierd()
        self.gated(tierd)
        tierd.ensure = lambda _body: iter([{"ready": {"path": "/tierd/models/vae/a.safetensors"}}])
        self.assertEqual(self.run_prompt(self.look), "/tierd/models/vae/a.safetensors")

    def test_progress_is_put_into_comfyuis_log(self):
        tierd = self.tierd()
        self.gated(tierd)
        tierd.ensure = self.fetch(progress=[{"done_bytes": 3 * 10**9, "total_bytes": 12 * 10**9, "bytes_per_second": 900 * 10**6}])
        with self.assertLogs("tierd", "INFO") as logs:
            self.run_prompt(self.look)
        said = "\n".join(logs.output)
        self.assertIn("vae/a.safetensors is not here yet: asking tierd for it, for 60 s at most", said)
        self.assertIn("vae/a.safetensors: 25 % of 12.0 GB, 900 MB/s, about 10 s left", said)
        self.assertIn("vae/a.safetensors is here, after", said)

    def test_progress_is_not_put_there_more_often_than_every_few_seconds(self):
        gate.PROGRESS_EVERY_S = 3600.0
        tierd = self.tierd()
        self.gated(tierd)
        tierd.ensure = self.fetch(progress=[{"done_bytes": n, "total_bytes": 100} for n in range(50)])
        with self.assertLogs("tierd", "INFO") as logs:
            self.run_prompt(self.look)
        self.assertEqual(len([line for line in logs.output if "%" in line]), 0)

    def test_meanwhile_the_server_answers(self):
        """The prompt's thread waits; an asyncio server on another thread goes on answering, also to the same question."""
        tierd, modules = self.tierd(), self.comfy()
        loop = asyncio.new_event_loop()
        modules["server"].PromptServer.instance = types.SimpleNamespace(loop=loop)
        self.gated(tierd, modules=modules)
        waiting, go_on = threading.Event(), threading.Event()

        def ensure(_body):
            waiting.set()
            go_on.wait(fakes.WAIT_S)
            yield {"ready": {"path": self.file(MODEL)}}

        tierd.ensure = ensure
        serving = threading.Thread(target=loop.run_forever, daemon=True)
        serving.start()
        self.addCleanup(loop.close)
        self.addCleanup(serving.join)
        self.addCleanup(loop.call_soon_threadsafe, loop.stop)
        found = []
        prompt = threading.Thread(target=lambda: found.append(self.run_prompt(self.look)))
        prompt.start()
        self.assertTrue(waiting.wait(fakes.WAIT_S))

        async def handler():
            started = time.perf_counter()
            return self.look(), time.perf_counter() - started

        slowest = 0.0
        for _ in range(50):
            answer, seconds = asyncio.run_coroutine_threadsafe(handler(), loop).result(fakes.WAIT_S)
            self.assertIsNone(answer, "what ComfyUI would have said")
            slowest = max(slowest, seconds)
        self.assertFalse(found, "the prompt still waits")
        self.assertLess(slowest, 1.0)
        go_on.set()
        prompt.join(fakes.WAIT_S)
        self.assertEqual(found, [os.path.join(self.folder, "vae", NAME)])

    def test_the_thread_that_answers_http_never_waits_even_inside_a_prompt(self):
        tierd, modules = self.tierd(), self.comfy()
        self.gated(tierd, modules=modules)

        async def prompt_on_the_servers_loop():
            modules["server"].PromptServer.instance = types.SimpleNamespace(loop=asyncio.get_running_loop())
            return self.run_prompt(self.look)

        self.assertIsNone(asyncio.run(prompt_on_the_servers_loop()))

        async def prompt_on_a_loop_of_its_own():
            tierd.ensure = self.fetch()
            return self.run_prompt(self.look)

        self.assertIsNotNone(asyncio.run(prompt_on_a_loop_of_its_own()))
        self.assertEqual(len(tierd.wait_path("/ensure")), 1)

    def test_outside_a_prompt_nothing_waits(self):
        tierd = self.tierd()
        self.gated(tierd)
        self.assertIsNone(self.look())
        with self.assertRaises(FileNotFoundError):
            self.look(demand=True)
        self.assertFalse([call for call in tierd.calls if call["path"].endswith("/ensure")])

    def test_off_means_off(self):
        for name, setting, answer in (("the daemon", "", False), ("the environment", "0", True)):
            with self.subTest(by=name):
                tierd = self.tierd()
                tierd.hello_answer["gate"], tierd.absent = answer, [MODEL]
                self.pack(tierd.environ(TIERD_GATE=setting))
                tierd.wait_path("/report", 3)
                self.assertIsNone(self.run_prompt(self.look))
                self.assertFalse([call for call in tierd.calls if call["path"].endswith(("/ensure", "/absent"))])

    def test_a_failure_is_the_nodes_error_with_reason_and_advice(self):
        tierd = self.tierd()
        self.gated(tierd)
        tierd.ensure = lambda _body: iter([{"failed": {"kind": "no_room", "message": "it needs 12 GB, 3 GB are free.", "advice": "unpin something"}}])
        with self.assertRaises(FileNotFoundError) as raised:
            self.run_prompt(self.look)
        self.assertEqual(str(raised.exception), "tierd could not get vae/a.safetensors: it needs 12 GB, 3 GB are free. unpin something")

    def test_an_absent_model_that_no_origin_has_any_more_fails_too(self):
        tierd = self.tierd()
        self.gated(tierd)
        with self.assertRaisesRegex(gate.ModelNotReady, "no such model"):
            self.run_prompt(self.look)

    def test_a_preview_model_that_fails_does_not_fail_the_prompt(self):
        tierd = self.tierd()
        self.gated(tierd, absent=["vae_approx/taesd.safetensors"])
        tierd.ensure = lambda _body: iter([{"failed": {"kind": "origin_denied", "message": "it refuses"}}])
        self.assertIsNone(self.run_prompt(lambda: self.look("vae_approx", "taesd.safetensors")))
        with self.assertRaisesRegex(gate.ModelNotReady, "it refuses"):
            self.run_prompt(lambda: self.look("vae_approx", "taesd.safetensors", demand=True))

    def test_the_time_out_says_how_far_it_was(self):
        tierd = self.tierd()
        tierd.hello_answer["gate_timeout_s"] = 0.05
        self.gated(tierd)
        release = threading.Event()
        self.addCleanup(release.set)

        def ensure(_body):
            yield {"progress": {"done_bytes": 40, "total_bytes": 100, "bytes_per_second": 0}}
            release.wait(fakes.WAIT_S)

        tierd.ensure = ensure
        with self.assertRaisesRegex(gate.ModelNotReady, r"did not get vae/a.safetensors within 0 s \((40 % of 100 B|waiting for tierd to begin)\)"):
            self.run_prompt(self.look)

    def test_comfyuis_interrupt_ends_the_wait_and_leaves_the_ensure(self):
        tierd = self.tierd()
        self.gated(tierd)
        left = threading.Event()

        def ensure(_body):
            self.modules["comfy.model_management"].interrupt = True
            try:
                while True:
                    yield {"progress": {"done_bytes": 1, "total_bytes": 2}}
                    left.wait(0.005)
            finally:
                left.set()

        tierd.ensure = ensure
        with self.assertRaises(fakes.Interrupted):
            self.run_prompt(self.look)
        self.assertTrue(left.wait(fakes.WAIT_S), "tierd sees the caller go")

    def test_a_daemon_that_is_restarted_meanwhile_is_waited_for(self):
        tierd = self.tierd()
        self.gated(tierd)
        tries = []

        def ensure(_body):
            tries.append(1)
            if len(tries) == 1:
                yield {"progress": {"done_bytes": 1, "total_bytes": 2}}
                return  # cut off, without an end
            if len(tries) == 2:
                yield {"failed": {"kind": "shutting_down", "message": "it is shutting down"}}
            yield {"ready": {"path": self.file(MODEL)}}

        tierd.ensure = ensure
        self.assertTrue(self.run_prompt(self.look))
        self.assertEqual(len(tries), 3)

    def test_a_daemon_that_is_gone_is_named_in_the_error(self):
        gate.RECONNECT_S = 0.1
        self.addCleanup(setattr, gate, "RECONNECT_S", 30.0)
        tierd = self.tierd()
        self.gated(tierd)
        tierd.stop()
        with self.assertRaises(gate.ModelNotReady) as raised:
            self.run_prompt(self.look)
        self.assertIn(tierd.path, str(raised.exception))
        self.assertIn("Is it running?", str(raised.exception))

    def test_names_that_tierd_never_called_absent_do_not_wait_for_a_daemon_that_says_nothing(self):
        gate.ASKED_S = 0.05
        self.addCleanup(setattr, gate, "ASKED_S", 2.0)
        tierd = self.tierd()
        self.gated(tierd, absent=["vae/other.safetensors"])
        tierd.mute = True
        self.assertIsNone(self.run_prompt(self.look))
        with self.assertRaisesRegex(FileNotFoundError, "no such model"):
            self.run_prompt(lambda: self.look(demand=True))
        tierd.stop()
        with self.assertRaisesRegex(FileNotFoundError, "no such model"):
            self.run_prompt(lambda: self.look(demand=True))

    def test_nonsense_from_the_other_end_is_a_model_that_is_missing(self):
        tierd = self.tierd()
        for line in ({"failed": None}, {"ready": None}, {"failed": {}}, {"progress": "x"}, {"ready": 5}):
            with self.subTest(line=line):
                tierd.hello_answer["gate_timeout_s"] = 0.2
                self.gated(tierd)
                tierd.ensure = lambda _body, line=line: iter([line])
                try:
                    self.assertIsNone(self.run_prompt(self.look))
                except gate.ModelNotReady:
                    pass


if __name__ == "__main__":
    unittest.main()
