# SPDX-License-Identifier: Apache-2.0
"""What all test cases share: a folder, a fake ComfyUI and a pack in it, taken apart at the end."""

import logging
import os
import tempfile
import unittest

import fakes
from tierd import hooks


class Case(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = folder.name
        hooks._complaints = 0
        logger = logging.getLogger("tierd")
        level, logger.propagate = logger.level, False
        logger.addHandler(logging.NullHandler())
        logger.setLevel(logging.INFO)
        self.addCleanup(setattr, logger, "propagate", True)
        self.addCleanup(logger.setLevel, level)

    def tierd(self, **options):
        fake = fakes.FakeTierd(**options)
        self.addCleanup(fake.close)
        return fake

    def comfy(self, **options):
        return fakes.comfy(self.folder, **options)

    def pack(self, environ, modules=None, **options):
        """A pack that is attached and reports. `environ` may be a fake tierd."""
        self.modules = modules or self.comfy(**options)
        pack = hooks.start(environ.environ() if isinstance(environ, fakes.FakeTierd) else environ, self.modules)
        self.addCleanup(pack.reporter.stop)
        return pack

    def nobody(self):
        """The environment where no tierd is."""
        return {"TIERD_SOCKET": os.path.join(self.folder, "nobody")}

    def file(self, model, size=10):
        path = os.path.join(self.folder, *model.split("/"))
        with open(path, "wb") as file:
            file.write(b"x" * size)
        return path

    def run_prompt(self, *nodes, prompt_id="p1"):
        """Runs functions as the nodes of a prompt, on this thread, and returns what the last one returned."""
        executor = self.modules["execution"].PromptExecutor()
        executor.execute(list(nodes), prompt_id, {})
        return executor.last

    def model(self, path, size=100, node=True, **parameters):
        """A node's work: reads a file and makes a patcher from it."""
        self.modules["comfy.utils"].load_torch_file(path)
        return self.patcher(size, **parameters)

    def patcher(self, size=100, parameters=(), device=None):
        device = device or self.modules["comfy.model_management"].get_torch_device()
        return self.modules["comfy.model_patcher"].ModelPatcher(fakes.Model(parameters), device, None, size)
