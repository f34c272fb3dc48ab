"""OpenAI's request as what it asks of us, and its answer, put together from pieces."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.api.images import (
    CHUNK,
    ImageData,
    ImagesResponse,
    base64_pieces,
    data_by_url,
    data_inline,
    head_of,
    spliced,
)
from router.contract import JobState
from router.contract.dialects.images import ImagesRequest, Quality
from router.jobs import Job
from worker.contract import GenerationRequest, ImageFormat, Preset


def job(seed: int, **fields: object) -> Job:
    request = GenerationRequest.model_validate(
        {"prompt": "a" * 10, "width": 512, "height": 256, "seed": seed, **fields}
    )
    return Job(f"job_{seed}", "key_1", "interactive", JobState.SUCCEEDED, request, 1, 0, 0, 0, None, None)


async def joined(pieces: AsyncIterator[bytes]) -> bytes:
    return b"".join([piece async for piece in pieces])


@pytest.mark.parametrize("fields", [{"steps": 2}, {"preset": Preset.TURBO_12, "format": "webp"}])
@pytest.mark.parametrize("count", [1, 2])
async def test_spliced_images_are_the_documented_answer(fields: dict[str, object], count: int) -> None:
    jobs = [job(seed, **fields) for seed in range(count)]
    head = head_of(jobs, 1, 'a "user"')
    said = await joined(spliced(head, [data_inline(made, b"image") for made in jobs]))
    images = [ImageData(b64_json=base64.b64encode(b"image").decode(), seed=made.request.seed) for made in jobs]
    assert ImagesResponse.model_validate_json(said) == ImagesResponse(**head.model_dump(), data=images)
    assert b"null" not in said


async def test_a_url_is_said_as_documented() -> None:
    said = await joined(data_by_url(job(7), "https://x/?a=1&b"))
    assert ImageData.model_validate_json(said) == ImageData(url="https://x/?a=1&b", seed=7)


@pytest.mark.parametrize("length", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 2])
async def test_pieces_of_base64_join(length: int) -> None:
    image = bytes(range(256)) * (length // 256 + 1)
    assert await joined(base64_pieces(image[:length])) == base64.b64encode(image[:length])


def test_usage_counts_the_tokens_that_are_drawn() -> None:
    usage = head_of([job(1), job(2)], 1).usage
    assert (usage.output_tokens, usage.input_tokens, usage.total_tokens) == (2 * 32 * 16, 2 * 3, 2 * 512 + 6)


@given(st.integers(0, 100), st.sampled_from([ImageFormat.JPEG, ImageFormat.WEBP]))
def test_compression_is_the_lossy_files_quality(compression: int, form: ImageFormat) -> None:
    (one,) = ImagesRequest(prompt="a", output_format=form, output_compression=compression).wanted(1)
    assert GenerationRequest.model_validate(one).quality == max(1, compression)


@given(st.sampled_from(Quality))
def test_every_quality_is_a_preset(quality: Quality) -> None:
    (one,) = ImagesRequest(prompt="a", quality=quality).wanted(1)
    assert GenerationRequest.model_validate(one).preset is not None
