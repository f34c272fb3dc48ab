"""From latents to pixels: the repository's own VAE, with its norms fused and its channels last on a GPU."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from worker.engine import LoadError
from worker.untyped import Untyped, diffusers

PATCH = 2
"""A token is 2x2 pixels of the latent picture, which is an eighth of the image a side."""


class Decoder:
    """`fused` swaps the group norms for the kernels of `worker.engine.kernels.pixels`, which need Triton and a GPU."""

    def __init__(self, folder: Path, device: torch.device, dtype: torch.dtype, *, fused: bool) -> None:
        try:
            vae = diffusers.AutoencoderKLFlux2.from_pretrained(folder, torch_dtype=dtype)
        except (OSError, ValueError, TypeError) as error:
            raise LoadError(
                f"{folder} cannot be loaded as the image decoder ({error}); fetch the repository again"
            ) from error
        vae.encoder = None  # never used: 34 M parameters and their memory
        vae = vae.to(device).eval()
        # The statistics that undo the latents' normalisation, one of each of a token's channels.
        self._mean = vae.bn.running_mean.float()
        self._std = torch.sqrt(vae.bn.running_var.float() + vae.config.batch_norm_eps)
        self._dtype = dtype
        self._fused = fused
        if fused:
            vae = vae.to(memory_format=torch.channels_last)
            _fuse(vae.decoder)
        self._vae: Untyped = vae

    def pixels(self, latents: Tensor, grid: tuple[int, int]) -> Tensor:
        """`latents` (image tokens x channels, float32) as height x width x 3 bytes, still on the device."""
        high, wide = grid
        z = latents * self._std + self._mean
        z = z.view(high, wide, PATCH, PATCH, -1).permute(4, 0, 2, 1, 3).reshape(1, -1, high * PATCH, wide * PATCH)
        z = z.to(self._dtype)
        if self._fused:
            z = z.contiguous(memory_format=torch.channels_last)
        decoded = self._vae.decode(z, return_dict=False)[0].float()
        shown: Tensor = ((decoded * 0.5 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
        return shown[0].permute(1, 2, 0).contiguous()


def picture(pixels: Tensor) -> Image.Image:
    """Height x width x 3 bytes as a picture. Waits for the device."""
    return Image.fromarray(pixels.cpu().numpy(), "RGB")


class _FusedNorm(nn.Module):
    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        from worker.engine.kernels.pixels import group_norm  # noqa: PLC0415 - wants Triton

        norm = self.norm
        return group_norm(x, norm.weight, norm.bias, norm.num_groups, norm.eps, silu=True)


def _fuse(decoder: Untyped) -> None:
    """Every group norm that a SiLU follows takes it over; the SiLU becomes nothing."""
    for module in decoder.modules():
        if isinstance(getattr(module, "nonlinearity", None), nn.SiLU):
            module.norm1, module.norm2 = _FusedNorm(module.norm1), _FusedNorm(module.norm2)
            module.nonlinearity = nn.Identity()
    decoder.conv_norm_out = _FusedNorm(decoder.conv_norm_out)
    decoder.conv_act = nn.Identity()
