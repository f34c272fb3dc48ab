"""From a prompt to the features that the transformer is conditioned on: the language half of Qwen3-VL.

The pipeline taps 13 of its layers; nothing above the last of them, no picture tower and no padding is
computed here. One prompt at a time, causal, as many tokens as it has.
"""

from __future__ import annotations

from pathlib import Path

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn

from worker.contract import MAX_PROMPT_TOKENS
from worker.engine import InvalidRequestError, LoadError
from worker.engine.checkpoint import Checkpoint, Packed, expanded, size
from worker.engine.described import described
from worker.engine.linear import Nf4
from worker.untyped import Untyped, transformers

TAPPED = (0, 3, 6, 9, 12, 15, 18, 21, 24, 27, 30, 33, 35)
"""The decoder layers whose outputs make a token's features, interleaved: 13 x 4096."""
PREFIXES = ("language_model.", "model.language_model.", "model.", "")
"""What a repository may put before the names of the language model's tensors."""


class Tokenizer:
    """The prompt within its chat template, as the pipeline counts it."""

    def __init__(self, folder: Path) -> None:
        try:
            self._tokenizer: Untyped = transformers.AutoTokenizer.from_pretrained(folder)
        except (OSError, ValueError) as error:
            raise LoadError(f"{folder} cannot be loaded as the tokenizer: {error}") from error

    def __call__(self, prompt: str) -> list[int]:
        """Token ids; InvalidRequestError if they are over MAX_PROMPT_TOKENS."""
        messages = [{"role": "user", "content": [{"type": "text", "text": prompt}]}]
        text = self._tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        # The backend encodes without the warning that a long text draws; its length is ours to judge.
        ids: list[int] = self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        if len(ids) > MAX_PROMPT_TOKENS:
            raise InvalidRequestError(
                f"prompt: has {len(ids)} tokens with its chat template; the text encoder takes {MAX_PROMPT_TOKENS}"
            )
        return ids


class TextEncoder:
    """`packed` keeps nf4 weights packed (5.5 GB instead of 16) and expands each for its product.

    `parked` keeps them in the host's memory between uses and brings them over for each prompt: for cards
    where the transformers leave no room. Both are decided by `worker.engine.memory`.
    """

    def __init__(
        self, folder: Path, device: torch.device, dtype: torch.dtype, *, packed: bool = False, parked: bool = False
    ) -> None:
        self._device = device
        self._model = _empty(folder)
        with Checkpoint(folder, device) as checkpoint:
            _fill(self._model, checkpoint, dtype, packed=packed and checkpoint.packed)
        self._parked = parked
        self._model.rotary_emb.to(device)
        if parked:
            self._model.to("cpu")

    @property
    def bytes(self) -> int:
        return sum(part.nbytes for part in [*self._model.parameters(), *self._model.buffers()])

    def __call__(self, ids: list[int]) -> Tensor:
        """Tokens x (layers tapped x width) on the device."""
        if self._parked:
            self._model.to(self._device)
        try:
            return self._features(torch.tensor([ids], device=self._device))
        finally:
            if self._parked:
                self._model.to("cpu")
                if self._device.type == "cuda":
                    # Kept for this stream alone otherwise, and the picture is drawn on another.
                    torch.cuda.empty_cache()

    def _features(self, ids: Tensor) -> Tensor:
        model = self._model
        x = model.embed_tokens(ids)
        positions = torch.arange(ids.shape[1], device=self._device)[None]
        turned = model.rotary_emb(x, positions.expand(3, 1, -1))
        taps = []
        for number, layer in enumerate(model.layers[: TAPPED[-1] + 1]):
            # No mask: attention is causal by itself when none is given.
            x = layer(x, attention_mask=None, position_ids=positions, past_key_values=None, position_embeddings=turned)
            if number in TAPPED:
                taps.append(x[0])
        return torch.stack(taps, dim=-1).flatten(1)


class _PackedLinear(nn.Module):
    """An nf4 layer as buffers, so that it moves with its module."""

    def __init__(self, packed: Packed, dtype: torch.dtype) -> None:
        super().__init__()
        self.register_buffer("values", packed.values)
        self.register_buffer("absmax", packed.absmax)
        self._shape, self._block, self._dtype = packed.shape, packed.block, dtype

    def forward(self, x: Tensor) -> Tensor:
        packed = Packed(self.get_buffer("values"), self.get_buffer("absmax"), self._shape, self._block)
        product = Nf4(packed, self._dtype)(x.flatten(0, -2))
        assert isinstance(product, Tensor)  # noqa: S101 - Nf4's are; tells the type checker
        return product.reshape(*x.shape[:-1], -1)


def _empty(folder: Path) -> Untyped:
    """The language model without weights, and without what lies above the last tapped layer."""
    try:
        config = transformers.Qwen3VLConfig(**described(folder)).text_config
    except (ValueError, TypeError, StrictDataclassError) as error:
        raise LoadError(f"{folder}/config.json cannot be used ({error}); fetch the repository again") from error
    if config.num_hidden_layers <= TAPPED[-1]:
        raise LoadError(
            f"{folder}: the text encoder has {config.num_hidden_layers} layers, {TAPPED[-1] + 1} are tapped"
        )
    config._attn_implementation = "sdpa"  # noqa: SLF001 - what from_pretrained sets
    with torch.device("meta"):
        model = transformers.models.qwen3_vl.modeling_qwen3_vl.Qwen3VLTextModel(config)
    model.layers = model.layers[: TAPPED[-1] + 1]
    model.norm = nn.Identity()
    model.rotary_emb = type(model.rotary_emb)(config=config)
    return model.eval()


def _fill(model: Untyped, checkpoint: Checkpoint, dtype: torch.dtype, *, packed: bool) -> None:
    prefix = next((p for p in PREFIXES if f"{p}embed_tokens.weight" in checkpoint), None)
    if prefix is None:
        raise LoadError(
            "the text encoder has no …embed_tokens.weight: it holds no language model; check the repository"
        )
    for name, parameter in list(model.named_parameters()):
        owner, _, last = name.rpartition(".")
        module = model.get_submodule(owner)
        stored = checkpoint.stored(f"{prefix}{name}")
        if size(stored) != tuple(parameter.shape):
            raise LoadError(
                f"the text encoder's {name} is {size(stored)}, its config says {tuple(parameter.shape)}; "
                "fetch the repository again"
            )
        if packed and isinstance(stored, Packed) and isinstance(module, nn.Linear):
            above, _, own = owner.rpartition(".")
            setattr(model.get_submodule(above), own, _PackedLinear(stored, dtype))
            continue
        setattr(module, last, nn.Parameter(expanded(stored, dtype), requires_grad=False))
