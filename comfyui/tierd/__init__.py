# SPDX-License-Identifier: Apache-2.0
"""tierd inside ComfyUI: says what is queued, read and loaded, and fetches missing models on use.

ComfyUI imports this folder from `custom_nodes`. It adds no node and no user interface. It must never
break ComfyUI: whatever goes wrong in here is logged, and ComfyUI goes on as if the pack were not there.
"""

import logging

NODE_CLASS_MAPPINGS = {}
NODE_DISPLAY_NAME_MAPPINGS = {}

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]

try:
    from .hooks import start

    start()
except Exception:  # the one promise of this file: importing it cannot fail
    logging.getLogger("tierd").warning("tierd: the node pack could not start; ComfyUI goes on without it", exc_info=True)
