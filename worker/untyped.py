"""diffusers and transformers as untyped modules.

Both load lazily, and what a type checker sees instead of their classes are the stand-ins for missing
libraries, without attributes. Importing this module imports torch: seconds.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

diffusers: Any = import_module("diffusers")
transformers: Any = import_module("transformers")

Untyped = Any
"""An object of theirs."""


def quiet() -> None:
    """No progress bars, and what they log goes where the process logs, rather than to handlers of their own."""
    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()
        library.utils.logging.disable_default_handler()
        library.utils.logging.enable_propagation()
