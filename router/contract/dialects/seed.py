"""The words of the published server, to the letter."""

from __future__ import annotations

from pydantic import Field

from worker.contract import Frozen, Prompt, Side, Steps


class GenerateRequest(Frozen):
    """Sides are in pixels."""

    prompt: Prompt = Field(examples=["a letterpress print shop at night"])
    width: Side = 1024
    height: Side = 1024
    steps: Steps = 25
