"""OpenAI's answer, put together from images that are JSON already."""

from __future__ import annotations

import pytest

from router.api.openai import ImageData, ImagesHead, ImagesResponse, Quality, spliced


@pytest.mark.parametrize("quality", [None, Quality.LOW])
@pytest.mark.parametrize("count", [1, 2])
def test_spliced_images_are_the_documented_answer(quality: Quality | None, count: int) -> None:
    head = ImagesHead(created=1, quality=quality, size='a "size"')
    images = [ImageData(b64_json="AAAA", seed=seed) for seed in range(count)]
    said = b"".join(spliced(head, [image.model_dump_json(exclude_none=True).encode() for image in images]))
    assert ImagesResponse.model_validate_json(said) == ImagesResponse(**head.model_dump(), data=images)
    assert b"null" not in said
