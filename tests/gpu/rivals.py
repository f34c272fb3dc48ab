"""The pipeline as others run it: the published script, its compiled form, and the best that public interfaces give."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers.models.attention_dispatch import dispatch_attention_fn
from PIL import Image
from torch import Tensor, nn

from worker.engine.checkpoint import Checkpoint
from worker.presets import Sampling
from worker.untyped import Untyped, diffusers


@dataclass(frozen=True)
class Stock:
    """A pipeline and how it is called. `length` is its max_sequence_length; None takes the prompt's own. `side` is
    that of its images, in pixels."""

    pipe: Untyped
    length: int | None
    side: int = 1024

    def __call__(self, prompt: str, sampling: Sampling, seed: int, **more: Any) -> Any:  # noqa: ANN401
        return self.pipe(
            prompt,
            height=self.side,
            width=self.side,
            num_inference_steps=sampling.steps,
            guidance_schedule=list(sampling.guidance),
            mu=sampling.mu,
            std=sampling.std,
            max_sequence_length=self.length or _tokens(self.pipe, prompt),
            generator=torch.Generator("cpu").manual_seed(seed),
            **more,
        ).images[0]

    def image(self, prompt: str, sampling: Sampling, seed: int) -> Image.Image:
        made: Image.Image = self(prompt, sampling, seed)
        return made


def script(folder: Path, device: torch.device, side: int = 1024) -> Stock:
    """The published script: load in bfloat16, call. Its guidance repaired, or it would raise."""
    pipe = diffusers.Ideogram4Pipeline.from_pretrained(folder, torch_dtype=torch.bfloat16).to(device)
    pipe.set_progress_bar_config(disable=True)
    return Stock(pipe, 2048, side)


def compiled(stock: Stock) -> Stock:
    """What the script advises after loading. On a CPU the graph is taken, whole, and not compiled."""
    pipe = stock.pipe
    mode, backend = ("reduce-overhead", "inductor") if pipe.device.type == "cuda" else (None, "eager")
    for name in ("transformer", "unconditional_transformer"):
        setattr(pipe, name, torch.compile(getattr(pipe, name), fullgraph=True, mode=mode, backend=backend))
    return stock


def tuned(folder: Path, stock: Stock) -> Stock:
    """The honest rival: bf16 weights, torchao FP8 a row, blocks compiled, no padding and no mask.

    All of it public: `max_sequence_length` of the prompt's length, `compile_repeated_blocks`, an attention processor.
    """
    from torchao.quantization import (  # noqa: PLC0415 - this row's alone
        Float8DynamicActivationFloat8WeightConfig,
        PerRow,
        quantize_,
    )

    parts = {}
    for name in ("transformer", "unconditional_transformer"):
        model = _expanded(folder / name, stock.pipe.device)
        for block in model.layers:
            block.attention.set_processor(_Unmasked())
        # Its own settings of the compiler reach the whole process and make it compile for minutes.
        config = Float8DynamicActivationFloat8WeightConfig(granularity=PerRow(), set_inductor_config=False)
        quantize_(model.layers, config)
        model.compile_repeated_blocks(fullgraph=True, dynamic=False)
        parts[name] = model
    pipe = diffusers.Ideogram4Pipeline(
        scheduler=stock.pipe.scheduler,
        vae=stock.pipe.vae,
        text_encoder=stock.pipe.text_encoder,
        tokenizer=stock.pipe.tokenizer,
        **parts,
    )
    pipe.set_progress_bar_config(disable=True)
    return Stock(pipe, None)


class _Unmasked:
    """The pipeline's own attention processor but for the mask, which is all true where nothing is padded."""

    _attention_backend = None
    _parallel_config = None

    def __call__(
        self,
        attn: Untyped,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,  # noqa: ARG002 - diffusers' name for it
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        assert image_rotary_emb is not None
        shape = (*hidden_states.shape[:2], attn.num_heads, attn.head_dim)
        query, key, value = (to(hidden_states).view(shape) for to in (attn.to_q, attn.to_k, attn.to_v))
        cos, sin = (table.unsqueeze(2) for table in image_rotary_emb)
        query, key = (part * cos + _half_turn(part) * sin for part in (attn.norm_q(query), attn.norm_k(key)))
        seen = dispatch_attention_fn(query, key, value, attn_mask=None)
        out: Tensor = attn.to_out[0](seen.flatten(2, 3))
        return out


def _half_turn(x: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat((-second, first), dim=-1)


def _expanded(folder: Path, device: torch.device) -> Untyped:
    """A packed transformer as diffusers' own class in bf16."""
    config = diffusers.Ideogram4Transformer2DModel.load_config(folder)
    config.pop("quantization_config", None)
    with init_empty_weights():
        model = diffusers.Ideogram4Transformer2DModel.from_config(config)
    with Checkpoint(folder, device) as checkpoint:
        for name, _ in list(model.named_parameters()):
            owner, _, last = name.rpartition(".")
            value = nn.Parameter(checkpoint.tensor(name, torch.bfloat16), requires_grad=False)
            setattr(model.get_submodule(owner), last, value)
    for module in model.modules():
        if isinstance(getattr(module, "inv_freq", None), Tensor):
            size, base = module.head_dim, config["rope_theta"]
            module.inv_freq = 1.0 / base ** (torch.arange(0, size, 2, dtype=torch.float32, device=device) / size)
    return model.eval()


def _tokens(pipe: Untyped, prompt: str) -> int:
    messages = [{"role": "user", "content": [{"type": "text", "text": prompt}]}]
    text = pipe.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    return len(pipe.tokenizer(text, add_special_tokens=False)["input_ids"])


def settle() -> None:
    """Wait for what the GPU was given; a CPU has done it."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds(call: Callable[[], object]) -> float:
    """How long `call` takes, the GPU's part included."""
    settle()
    begun = time.perf_counter()
    call()
    settle()
    return time.perf_counter() - begun
