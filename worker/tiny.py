"""The tiny model: a whole Ideogram 4 repository on disk with random weights and almost no width.

It has every part that the real repository has, of the same classes, in diffusers' own layout, so that
whatever loads and serves it serves the real one too: 16 pixels a token, 128 latent channels, the 13
tapped text layers, two separate transformers, a byte-level tokenizer that spells any text. Its pictures
are noise. Loading it is `worker.engine`'s business; this module only builds it.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
import tempfile
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from tokenizers.pre_tokenizers import ByteLevel

from worker.untyped import Untyped, diffusers, transformers

NOTICE = "tiny random weights: noise, not a picture"
"""Written into every picture that these weights draw."""
MARKER = "RANDOM-WEIGHTS"
"""The file that says so of a repository, wherever it was copied to."""
TAPPED_LAYERS = 13
"""The pipeline joins the states of this many text layers, the last of them number 35."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """What the repository is built from. Any change gives it another name on disk.

    The 1024 image tokens of 512x512 are given, so width and depth are what is left to save: 20 steps
    take 0.4 s on two CPU cores and 0.7 s on one.
    """

    version: int = 1
    seed: int = 4
    head: int = 16
    heads: int = 2
    layers: int = 1
    feed_forward: int = 64
    adaln: int = 16
    text_layers: int = 36
    text_width: int = 16
    vae_width: int = 8
    vocabulary: int = 1024

    def key(self) -> str:
        """Names this recipe together with the libraries whose layout it is saved in."""
        described = json.dumps([asdict(self), version("diffusers"), version("transformers"), CORPUS, CHAT_TEMPLATE])
        return hashlib.sha256(described.encode()).hexdigest()[:12]


DEFAULT = Recipe()


def path(cache: Path, recipe: Recipe = DEFAULT) -> Path:
    """Where `ensure` puts it. It is whole if it is there."""
    return cache / f"tiny-{recipe.key()}"


def ensure(cache: Path, recipe: Recipe = DEFAULT) -> Path:
    """The tiny repository below `cache`, built now if it is not there; some seconds the first time.

    Any number of processes may ask at once: one builds, under a lock, and the folder appears whole.
    """
    target = path(cache, recipe)
    if target.is_dir():
        return target
    cache.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (cache / "tiny.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.is_dir():
            draft = Path(tempfile.mkdtemp(prefix=".tiny-", dir=cache))
            try:
                _build(draft, recipe)
                draft.rename(target)
            finally:
                shutil.rmtree(draft, ignore_errors=True)
    return target


def is_tiny(folder: Path) -> bool:
    """Whether the repository in `folder` was built here."""
    return (folder / MARKER).is_file()


def _build(folder: Path, recipe: Recipe) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        pipeline = diffusers.Ideogram4Pipeline(
            scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
            vae=_vae(recipe),
            text_encoder=_text_encoder(recipe),
            tokenizer=_tokenizer(recipe),
            transformer=_transformer(recipe),
            unconditional_transformer=_transformer(recipe),
        )
        pipeline.save_pretrained(folder)
    (folder / MARKER).write_text(f"{NOTICE}\n")


def _transformer(recipe: Recipe) -> Untyped:
    # The three axes of the rotary embedding share half a head: t first, then h and w alike.
    third = recipe.head // 2 // 3
    return diffusers.Ideogram4Transformer2DModel(
        in_channels=128,
        num_layers=recipe.layers,
        attention_head_dim=recipe.head,
        num_attention_heads=recipe.heads,
        intermediate_size=recipe.feed_forward,
        adaln_dim=recipe.adaln,
        llm_features_dim=TAPPED_LAYERS * recipe.text_width,
        mrope_section=(recipe.head // 2 - 2 * third, third, third),
    ).eval()


def _vae(recipe: Recipe) -> Untyped:
    return diffusers.AutoencoderKLFlux2(
        block_out_channels=(recipe.vae_width,) * 4,
        layers_per_block=1,
        latent_channels=32,
        norm_num_groups=4,
        mid_block_add_attention=False,
    ).eval()


def _text_encoder(recipe: Recipe) -> Untyped:
    width = recipe.text_width
    config = transformers.Qwen3VLConfig(
        text_config={
            "vocab_size": recipe.vocabulary,
            "hidden_size": width,
            "intermediate_size": 2 * width,
            "num_hidden_layers": recipe.text_layers,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 8,
            "max_position_embeddings": 4096,
            "rope_parameters": {"rope_type": "default", "rope_theta": 5_000_000, "mrope_section": [2, 1, 1]},
        },
        # The pipeline never shows the encoder a picture; its eyes are as small as they can be.
        vision_config={
            "depth": 1,
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_heads": 1,
            "out_hidden_size": width,
            "num_position_embeddings": 4,
            "deepstack_visual_indexes": [],
        },
    )
    return transformers.Qwen3VLModel(config).eval()


CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.content is string %}{{ message.content }}"
    "{% else %}{% for part in message.content %}{{ part.text }}{% endfor %}{% endif %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CORPUS = (
    "a photograph of an old letterpress printing the morning paper in a quiet street, warm window light, film grain",
    "an illustration with bold outlines of three foxes reading under the stars, flat colour, poster for the city",
    "close portrait of a woman with grey hair in the garden, shallow depth of field, soft shadow, natural skin",
    "the words open every day painted on a wooden sign above the door of the bakery on the corner",
    (
        'user assistant {"high_level_description":"","style_description":{"aesthetics":"","lighting":"","photo":"",'
        '"medium":"","art_style":"","color_palette":["#FFFFFF","#102030"]},"compositional_deconstruction":'
        '{"background":"","elements":[{"type":"obj","bbox":[120,40,880,960],"desc":""},{"type":"text","text":""}]}}'
    ),
)
"""What the tokenizer learned its merges from: enough that a caption is not spelled letter by letter, so
that the limit of 2048 tokens means about what it means to the real tokenizer."""


def _tokenizer(recipe: Recipe) -> Untyped:
    alphabet = sorted(ByteLevel.alphabet())  # every byte, so that any text can be spelled
    student = transformers.Qwen2Tokenizer(vocab={letter: number for number, letter in enumerate(alphabet)}, merges=[])
    trained = student.train_new_from_iterator(
        iter(CORPUS), vocab_size=recipe.vocabulary - len(SPECIAL), show_progress=False
    )
    model = json.loads(trained.backend_tokenizer.to_str())["model"]
    tokenizer = transformers.Qwen2Tokenizer(
        vocab=model["vocab"],
        merges=[tuple(pair) for pair in model["merges"]],
        extra_special_tokens=list(SPECIAL[1:]),
        chat_template=CHAT_TEMPLATE,
        model_max_length=32768,
    )
    if len(tokenizer) > recipe.vocabulary:
        raise AssertionError(f"the tiny tokenizer has {len(tokenizer)} tokens, the encoder {recipe.vocabulary}")
    return tokenizer
