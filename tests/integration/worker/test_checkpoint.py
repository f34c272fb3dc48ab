"""Weights in every layout that the fast engine reads: bitsandbytes' own nf4 files, the maker's FP8, shards, damage.

The nf4 files are written by bitsandbytes itself. The FP8 layout follows its public description; nobody here
has seen the real files.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import bitsandbytes.functional as bnb
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from worker.contract import GenerationRequest, Tier
from worker.engine import LoadError
from worker.engine.checkpoint import Checkpoint, Packed, expanded
from worker.engine.fast import FastEngine
from worker.engine.kernels import Format, Rows
from worker.engine.kernels.plain import quantised
from worker.engine.text import TextEncoder

CPU = torch.device("cpu")
FILE = "diffusion_pytorch_model.safetensors"
REQUEST = GenerationRequest(prompt="three foxes", width=256, height=256, steps=2, seed=7)

Tensors = dict[str, Tensor]


def nf4(tensors: Tensors, name: str, *, nested: bool) -> Tensors:
    """`tensors` with one matrix as bitsandbytes saves it."""
    packed, state = bnb.quantize_4bit(tensors[name].contiguous(), quant_type="nf4", compress_statistics=nested)
    described = {f"{name}.{key}": value for key, value in state.as_dict(packed=True).items()}
    return {**tensors, name: packed, **described}


def fp8(tensors: Tensors, name: str) -> Tensors:
    """`tensors` with one matrix as the maker's FP8 repository has it."""
    rows = quantised(tensors[name].float(), Format.FP8)
    return {**tensors, name: rows.values, f"{name}_scale": rows.scale.flatten()}


def together(tensors: Tensors) -> Tensors:
    """`tensors` under the maker's names, query, key and value in one."""
    renamed = dict(tensors)
    for name in list(tensors):
        if name.endswith("attention.to_q.weight"):
            block = name.removesuffix("to_q.weight")
            renamed[f"{block}qkv.weight"] = torch.cat([renamed.pop(f"{block}to_{part}.weight") for part in "qkv"])
            renamed[f"{block}o.weight"] = renamed.pop(f"{block}to_out.0.weight")
    return renamed


def matrices(tensors: Tensors) -> list[str]:
    return [name for name, tensor in tensors.items() if tensor.dim() == 2 and "indicator" not in name]


def rewritten(folder: Path, into: Path, change: Callable[[Tensors], Tensors]) -> Path:
    """A copy of a repository whose transformers and text encoder are stored in another way."""
    shutil.copytree(folder, into)
    for part in ("transformer", "unconditional_transformer"):
        tensors = load_file(into / part / FILE)
        save_file(change(tensors), into / part / FILE)
    return into


def pixels(model: Path, cache: Path, tier: Tier = Tier.EXACT) -> bytes:
    engine = FastEngine(str(model), "cpu", cache, tier, warm=(), cpu_threads=1)
    engine.load(lambda _: None)
    return engine.render(engine.prepare(REQUEST), lambda _: None, lambda: False).image.tobytes()


@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nf4_is_expanded_to_the_values_that_bitsandbytes_multiplies_with(
    tmp_path: Path,
    nested: bool,
    dtype: torch.dtype,
) -> None:
    weight = torch.randn(96, 128, generator=torch.Generator().manual_seed(3)).to(dtype)
    save_file(nf4({"w.weight": weight}, "w.weight", nested=nested), tmp_path / FILE)
    packed, state = bnb.quantize_4bit(weight, quant_type="nf4", compress_statistics=nested)
    with Checkpoint(tmp_path, CPU) as checkpoint:
        assert checkpoint.packed
        stored = checkpoint.matrix("w")
        assert isinstance(stored, Packed)
        assert torch.equal(stored.expand(dtype), bnb.dequantize_4bit(packed, state))


def test_packed_matrices_are_joined_without_being_expanded(tmp_path: Path) -> None:
    tensors: Tensors = {}
    for number, part in enumerate("qkv"):
        name = f"layers.0.attention.to_{part}.weight"
        weight = torch.randn(64, 128, generator=torch.Generator().manual_seed(number))
        tensors |= nf4({name: weight}, name, nested=True)
    save_file(tensors, tmp_path / FILE)
    with Checkpoint(tmp_path, CPU) as checkpoint:
        parts = [f"layers.0.attention.to_{part}" for part in "qkv"]
        joined = checkpoint.matrix(*parts)
        assert isinstance(joined, Packed)
        apart = torch.cat([expanded(checkpoint.matrix(part), torch.float32) for part in parts])
        assert torch.equal(joined.expand(torch.float32), apart)


def test_an_nf4_repository_makes_the_same_picture_packed_and_expanded(tiny_repository: Path, tmp_path: Path) -> None:
    def pack(tensors: Tensors) -> Tensors:
        for name in matrices(tensors):
            tensors = nf4(tensors, name, nested=True)
        return tensors

    folder = rewritten(tiny_repository, tmp_path / "nf4", pack)
    assert pixels(folder, tmp_path) == pixels(folder, tmp_path, Tier.NF4)


def test_nf4_under_the_makers_names_is_the_same_as_under_diffusers(tiny_repository: Path, tmp_path: Path) -> None:
    def pack(tensors: Tensors) -> Tensors:
        for name in matrices(tensors):
            tensors = nf4(tensors, name, nested=False)
        return tensors

    official = rewritten(tiny_repository, tmp_path / "official", lambda tensors: pack(together(tensors)))
    plain = rewritten(tiny_repository, tmp_path / "plain", pack)
    assert pixels(official, tmp_path, Tier.NF4) == pixels(plain, tmp_path, Tier.NF4)


@pytest.mark.parametrize("parked", [False, True])
def test_a_packed_text_encoder_has_the_features_of_its_expanded_weights(
    tiny_repository: Path, tmp_path: Path, parked: bool
) -> None:
    folder = shutil.copytree(tiny_repository / "text_encoder", tmp_path / "text_encoder")
    (file,) = folder.glob("*.safetensors")
    tensors = load_file(file)
    for name in [name for name in matrices(tensors) if "_proj." in name and "layers." in name]:
        tensors = nf4(tensors, name, nested=True)
    save_file(tensors, file)
    packed = TextEncoder(folder, CPU, torch.float32, packed=True, parked=parked)
    expanded = TextEncoder(folder, CPU, torch.float32)
    assert packed.bytes < 0.7 * expanded.bytes
    ids = [5, 17, 200, 3]
    with torch.no_grad():
        assert torch.equal(packed(ids), expanded(ids))
        assert torch.equal(packed(ids), expanded(ids)), "and once more, from where it is parked"


def test_the_makers_fp8_layout_is_read_for_what_it_holds(tiny_repository: Path, tmp_path: Path) -> None:
    def quantise(tensors: Tensors) -> Tensors:
        tensors = together(tensors)
        for name in matrices(tensors):
            tensors = fp8(tensors, name)
        return tensors

    def rounded(tensors: Tensors) -> Tensors:
        """The same values in diffusers' own layout."""
        for name in matrices(tensors):
            tensors = {**tensors, name: expanded(quantised(tensors[name].float(), Format.FP8), torch.float32)}
        return tensors

    official = rewritten(tiny_repository, tmp_path / "fp8", quantise)
    plain = rewritten(tiny_repository, tmp_path / "plain", rounded)
    assert pixels(official, tmp_path) == pixels(plain, tmp_path)
    # The FP8 tier multiplies with the file's own values and scales, not with them quantised again.
    with Checkpoint(official / "transformer", CPU) as checkpoint:
        assert isinstance(checkpoint.matrix(*(f"layers.0.attention.to_{part}" for part in "qkv")), Rows)
    assert pixels(official, tmp_path, Tier.FP8) != pixels(official, tmp_path)


def test_matrices_stored_in_different_ways_are_joined_in_their_order(tmp_path: Path) -> None:
    names = [f"layers.0.attention.to_{part}" for part in "qkv"]
    plain = {f"{name}.weight": torch.randn(64, 128) for name in names}
    save_file(nf4(plain, f"{names[0]}.weight", nested=True), tmp_path / FILE)
    with Checkpoint(tmp_path, CPU) as checkpoint:
        joined = expanded(checkpoint.matrix(*names), torch.float32)
        apart = [expanded(checkpoint.matrix(name), torch.float32) for name in names]
    assert torch.equal(joined, torch.cat(apart))


def packed_as_int8(path: Path) -> None:
    tensors = load_file(path)
    name = "layers.0.feed_forward.w2.weight"
    save_file({**tensors, name: torch.zeros(tensors[name].shape, dtype=torch.int8)}, path)


def test_shards_are_one_checkpoint(tiny_repository: Path, tmp_path: Path) -> None:
    def split(folder: Path) -> None:
        tensors = load_file(folder / FILE)
        names = sorted(tensors)
        for number, part in enumerate((names[::2], names[1::2])):
            save_file({name: tensors[name] for name in part}, folder / f"model-{number + 1}-of-2.safetensors")
        (folder / FILE).unlink()

    folder = shutil.copytree(tiny_repository, tmp_path / "sharded")
    split(folder / "transformer")
    assert pixels(folder, tmp_path) == pixels(tiny_repository, tmp_path)


def broken_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def without_scale(path: Path) -> None:
    tensors = load_file(path)
    tensors = fp8(tensors, "input_proj.weight")
    del tensors["input_proj.weight_scale"]
    save_file(tensors, path)


def without_a_layer(path: Path) -> None:
    tensors = load_file(path)
    del tensors["layers.0.feed_forward.w2.weight"]
    save_file(tensors, path)


def packed_otherwise(path: Path) -> None:
    tensors = load_file(path)
    name = "llm_cond_proj.weight"
    packed, state = bnb.quantize_4bit(tensors[name], quant_type="fp4")
    described = {f"{name}.{key}": value for key, value in state.as_dict(packed=True).items()}
    save_file({**tensors, name: packed, **described}, path)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (Path.unlink, r"holds no \*\.safetensors"),
        (broken_off, "cannot be read .*fetch the repository again"),
        (without_scale, "is FP8 and input_proj.weight_scale is missing"),
        (without_a_layer, r"has no tensor layers\.0\.feed_forward\.w2\.weight: its layout"),
        (packed_otherwise, "packed as fp4; this worker reads nf4"),
        (packed_as_int8, "is torch.int8 in a packing that this worker does not read"),
    ],
)
def test_damage_is_told_with_the_file_and_what_to_do(
    tiny_repository: Path, tmp_path: Path, damage: Callable[[Path], None], says: str
) -> None:
    folder = shutil.copytree(tiny_repository, tmp_path / "damaged")
    damage(folder / "transformer" / FILE)
    with pytest.raises(LoadError, match=says):
        pixels(folder, tmp_path)


Config = dict[str, object]


def reconfigured(folder: Path, **changes: object) -> None:
    """Change what a component's config.json says."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("part", "changes", "says"),
    [
        # The same width, and another number of heads: every product fits, and the picture is another one.
        ("transformer", {"num_attention_heads": 4, "attention_head_dim": 8}, "attention.norm_q.weight is 16 and .* 8;"),
        ("transformer", {"num_layers": 2}, r"has no tensor layers\.1\.attention\.to_q\.weight"),
        ("transformer", {"intermediate_size": 128}, r"feed_forward\.w1 with layers\.0\.feed_forward\.w3 is 128x32"),
        ("transformer", {"adaln_dim": 32}, r"adaln_proj\.weight is 16x32 and its config\.json makes it 32x32"),
        ("transformer", {"llm_features_dim": 16}, r"llm_cond_norm\.weight is 208 "),
        ("transformer", {"num_layers": "one"}, "num_layers is 'one', which is no size"),
        ("transformer", {"mrope_section": [2, 2]}, "mrope_section"),
        ("text_encoder", {"text_config": 3}, "text_config is 3, where names and values belong"),
        ("text_encoder", {"text_config": {"num_hidden_layers": 36.5}}, "num_hidden_layers is 36.5, which is no size"),
    ],
)
def test_a_config_that_is_not_its_tensors_own_is_refused_before_any_picture(
    tiny_repository: Path, tmp_path: Path, part: str, changes: Config, says: str
) -> None:
    folder = shutil.copytree(tiny_repository, tmp_path / "other")
    reconfigured(folder / part, **changes)
    with pytest.raises(LoadError, match=says):
        pixels(folder, tmp_path)


def test_a_layer_that_the_config_does_not_count_is_not_dropped_in_silence(
    tiny_repository: Path, tmp_path: Path
) -> None:
    def deeper(tensors: Tensors) -> Tensors:
        again = {name.replace("layers.0.", "layers.1."): tensor.clone() for name, tensor in tensors.items()}
        return again | tensors

    folder = rewritten(tiny_repository, tmp_path / "deep", deeper)
    with pytest.raises(LoadError, match=r"holds \d+ weights that its config.json has no place for \(layers\.1\."):
        pixels(folder, tmp_path)


@pytest.mark.parametrize("part", ["scheduler", "tokenizer", "vae", "text_encoder", "unconditional_transformer"])
def test_a_part_that_is_missing_is_named(tiny_repository: Path, tmp_path: Path, part: str) -> None:
    folder = shutil.copytree(tiny_repository, tmp_path / "incomplete")
    shutil.rmtree(folder / part)
    with pytest.raises(LoadError, match=f"{folder} lacks {part}/; fetch the repository again"):
        pixels(folder, tmp_path)


def test_a_scheduler_that_is_none_is_told(tiny_repository: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_repository, tmp_path / "damaged")
    (folder / "scheduler" / "scheduler_config.json").rename(folder / "scheduler" / "other.json")
    with pytest.raises(LoadError, match=f"{folder}/scheduler cannot be loaded as the scheduler"):
        pixels(folder, tmp_path)


def test_a_config_that_is_not_one_is_told(tiny_repository: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_repository, tmp_path / "damaged")
    (folder / "transformer" / "config.json").write_text(json.dumps({"num_layers": 1})[:-1])
    with pytest.raises(LoadError, match=r"config\.json cannot be read"):
        pixels(folder, tmp_path)
