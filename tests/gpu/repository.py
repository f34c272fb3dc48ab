"""A repository of the true size with random weights, packed in nf4 as the published one is.

It is what `make bench-gpu` measures: right for speed, memory and exactness, and nothing else. Its pictures are
noise. About 16 GB; built on the GPU, in a minute or so.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import bitsandbytes.functional as bnb
import torch
from accelerate import init_empty_weights
from safetensors.torch import save_file
from torch import Tensor, nn

from worker import tiny
from worker.untyped import Untyped, diffusers, transformers

PACKED = {
    "quant_method": "bitsandbytes",
    "load_in_4bit": True,
    "load_in_8bit": False,
    "bnb_4bit_quant_type": "nf4",
    "bnb_4bit_use_double_quant": True,
    "bnb_4bit_compute_dtype": "bfloat16",
    "bnb_4bit_quant_storage": "uint8",
    "llm_int8_threshold": 6.0,
    "llm_int8_skip_modules": None,
    "llm_int8_enable_fp32_cpu_offload": False,
    "llm_int8_has_fp16_weight": False,
}
"""How both libraries say in a config.json that a component is packed."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """Empty: the true sizes. Else what the models' configurations are told instead (for a try without a GPU)."""

    transformer: dict[str, object]
    text: dict[str, object]
    vae: dict[str, object]


TRUE = Sizes(
    transformer={},
    text={
        "vocab_size": 151936,
        "hidden_size": 4096,
        "intermediate_size": 12288,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 262144,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 5_000_000, "mrope_section": [24, 20, 20]},
    },
    vae={},
)


def build(folder: Path, cache: Path, device: torch.device, sizes: Sizes = TRUE) -> Path:
    """The repository in `folder`, built now if it is not there."""
    if (folder / tiny.MARKER).is_file():
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    small = tiny.ensure(cache)
    for part in ("tokenizer", "scheduler"):
        shutil.copytree(small / part, folder / part)
    shutil.copy(small / "model_index.json", folder)
    with init_empty_weights():
        transformer = diffusers.Ideogram4Transformer2DModel(**sizes.transformer)
    for seed, part in enumerate(("transformer", "unconditional_transformer"), start=1):
        _write(transformer, folder / part / "diffusion_pytorch_model.safetensors", seed, device)
        _describe(folder / part, dict(transformer.config) | {"_class_name": "Ideogram4Transformer2DModel"})
    config = _text_config(sizes.text)
    with init_empty_weights():
        encoder = transformers.Qwen3VLModel(config)
    _write(encoder, folder / "text_encoder" / "model.safetensors", 3, device)
    _describe(folder / "text_encoder", config.to_dict() | {"architectures": ["Qwen3VLModel"], "dtype": "bfloat16"})
    torch.manual_seed(4)
    diffusers.AutoencoderKLFlux2(**sizes.vae).to(torch.bfloat16).save_pretrained(folder / "vae")
    (folder / tiny.MARKER).write_text("true size, random weights: noise, not a picture\n")
    return folder


def _text_config(sizes: dict[str, object]) -> Untyped:
    width = sizes["hidden_size"]
    # The pipeline never shows the encoder a picture; its eyes are as small as they can be.
    eyes = {
        "depth": 1,
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_heads": 1,
        "out_hidden_size": width,
        "num_position_embeddings": 4,
        "deepstack_visual_indexes": [],
    }
    return transformers.Qwen3VLConfig(text_config=sizes, vision_config=eyes)


def _describe(folder: Path, config: dict[str, object]) -> None:
    plain = {name: value for name, value in config.items() if not name.startswith("_use_default")}
    (folder / "config.json").write_text(json.dumps(plain | {"quantization_config": PACKED}, indent=2, default=str))


def _write(model: Untyped, path: Path, seed: int, device: torch.device) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator(device).manual_seed(seed)
    linear = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    tensors: dict[str, Tensor] = {}
    for name, like in model.state_dict().items():
        tensors |= dict(_drawn(name, like.shape, name in linear, generator))
    save_file(tensors, path, metadata={"format": "pt"})


def _drawn(name: str, shape: torch.Size, linear: bool, generator: torch.Generator) -> Iterator[tuple[str, Tensor]]:
    """Weights that keep what passes through them of the order of one, the norms' near one, the biases small."""
    drawn = torch.randn(shape, generator=generator, device=generator.device, dtype=torch.float32)
    if not linear:
        near = 1.0 if len(shape) == 1 and not name.endswith("bias") else 0.0
        yield name, (near + 0.02 * drawn).to(torch.bfloat16).cpu()
        return
    packed, state = bnb.quantize_4bit(
        (drawn * shape[1] ** -0.5).to(torch.bfloat16), quant_type="nf4", compress_statistics=True
    )
    yield name, packed.cpu()
    for key, value in state.as_dict(packed=True).items():
        yield f"{name}.{key}", value.cpu()
