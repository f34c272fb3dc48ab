"""Images in a bucket: real signatures over real HTTP, and what is said when the service does not do as asked."""

from __future__ import annotations

import stat
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from structlog.testing import capture_logs

from router import ids
from router.artifacts import AtUrl, file_path
from router.artifacts.s3 import Bucket, S3Artifacts, read_credentials
from router.errors import ArtifactError
from router.jobs import Image
from tests.emulators.s3 import REGION, EmulatedS3, emulated_s3, write_credentials

JOB = ids.job_id(1, bytes(10))
FILE = file_path(ids.file_id(1, bytes(10)))


@pytest.fixture
async def service() -> AsyncIterator[EmulatedS3]:
    async with emulated_s3() as running:
        yield running


@pytest.fixture
def bucket(service: EmulatedS3, tmp_path: Path) -> Bucket:
    credentials = tmp_path / "credentials"
    write_credentials(credentials, service)
    return Bucket("images", "prod/eu", REGION, service.endpoint, credentials=credentials)


@pytest.fixture
def artifacts(bucket: Bucket) -> S3Artifacts:
    return S3Artifacts(bucket)


@pytest.fixture
def hasty(bucket: Bucket) -> S3Artifacts:
    """Gives up at once, so that a fault is seen."""
    return S3Artifacts(bucket, retries=0, answer_s=0.5)


async def put(artifacts: S3Artifacts, attempt: int = 1, data: bytes = b"pixels", job: str = JOB) -> Image:
    return await artifacts.put(f"{job}.{attempt}", data, "image/png")


async def test_what_was_put_is_read_back_under_its_digest_and_type(artifacts: S3Artifacts, service: EmulatedS3) -> None:
    image = await put(artifacts)
    assert await artifacts.read(image) == b"pixels"
    assert service.objects == {f"prod/eu/{image.path}": (b"pixels", "image/png")}
    assert image.sha256[:16] in image.path
    assert await put(artifacts) == image


async def test_a_signed_url_opens_the_image_for_whoever_holds_it_and_no_other(
    artifacts: S3Artifacts, service: EmulatedS3
) -> None:
    place = await artifacts.place(await put(artifacts), 60)
    async with httpx.AsyncClient(trust_env=False) as anybody:
        assert (await anybody.get(place.url)).content == b"pixels"
        assert (await anybody.get(place.url.replace("X-Amz-Expires=60", "X-Amz-Expires=6000"))).status_code == 403
        assert (await anybody.get(place.url.partition("?")[0])).status_code == 403
    assert "X-Amz" not in repr(place)


async def test_clients_are_sent_to_the_public_endpoint(bucket: Bucket, service: EmulatedS3) -> None:
    public = "https://images.example"
    artifacts = S3Artifacts(
        Bucket(bucket.name, bucket.prefix, bucket.region, bucket.endpoint, public, bucket.credentials)
    )
    image = await put(artifacts)
    place = await artifacts.place(image, 60)
    assert isinstance(place, AtUrl)
    assert place.url.startswith(f"{public}/images/prod/eu/{image.path}?")


async def test_only_what_was_kept_is_left_of_a_job(artifacts: S3Artifacts, service: EmulatedS3) -> None:
    same_fan = ids.job_id(2, bytes(10))
    assert same_fan[-2:] == JOB[-2:]
    await put(artifacts, 1, b"lost")
    kept = await put(artifacts, 2, b"kept")
    other = await put(artifacts, job=same_fan)
    await artifacts.keep_only(JOB, kept)
    assert set(service.objects) == {f"prod/eu/{kept.path}", f"prod/eu/{other.path}"}
    await artifacts.keep_only(JOB, None)
    assert set(service.objects) == {f"prod/eu/{other.path}"}


async def test_a_first_attempts_image_costs_no_listing(artifacts: S3Artifacts, service: EmulatedS3) -> None:
    image = await put(artifacts)
    asked = len(service.asked)
    await artifacts.keep_only(JOB, image)
    assert len(service.asked) == asked


async def test_the_first_mark_stands(artifacts: S3Artifacts) -> None:
    assert await artifacts.mark() is None
    assert [await artifacts.set_mark("one"), await artifacts.set_mark("two"), await artifacts.mark()] == ["one"] * 3


async def test_being_asked_to_slow_down_is_waited_out(artifacts: S3Artifacts, service: EmulatedS3) -> None:
    service.faults.extend(["SlowDown", "SlowDown"])
    assert await artifacts.read(await put(artifacts)) == b"pixels"
    assert [line.split()[0] for line in service.asked] == ["PUT", "PUT", "PUT", "GET"]


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("SlowDown", r"the service asked us to slow down, and still did after several tries \(SlowDown\)"),
        ("ExpiredToken", r"the credentials have expired; put new ones into the credentials file \(ExpiredToken\)"),
        ("NoSuchBucket", r"there is no such bucket; make it, or correct its name .* \(NoSuchBucket\)"),
        ("BadDigest", r"the bytes changed on their way; nothing was stored \(BadDigest\)"),
        ("AccessDenied", r"access was denied; the key needs s3:GetObject, .* \(AccessDenied\)"),
        ("silence", "the service did not answer in time"),
    ],
)
async def test_each_fault_is_one_clear_error_and_nothing_is_lost(
    fault: str, said: str, hasty: S3Artifacts, service: EmulatedS3
) -> None:
    before = await put(hasty, 1, b"before")
    service.faults.append(fault)
    with pytest.raises(ArtifactError, match=rf"^the image of {JOB}\.2 could not be stored in s3://.*: {said}$"):
        await put(hasty, 2)
    assert list(service.objects) == [f"prod/eu/{before.path}"]
    assert await hasty.read(await put(hasty, 2)) == b"pixels"


async def test_nobody_there_is_said_so(bucket: Bucket) -> None:
    artifacts = S3Artifacts(Bucket("images", endpoint="http://127.0.0.1:1", credentials=bucket.credentials), retries=0)
    with pytest.raises(ArtifactError, match="no connection could be made"):
        await put(artifacts)


async def test_bytes_that_changed_at_rest_are_not_handed_out(hasty: S3Artifacts, service: EmulatedS3) -> None:
    image = await put(hasty)
    service.faults.append("rot")
    with pytest.raises(ArtifactError, match="is not the one that was stored"):
        await hasty.read(image)


async def test_an_image_that_was_removed_by_hand_is_named(artifacts: S3Artifacts, service: EmulatedS3) -> None:
    image = await put(artifacts)
    service.objects.clear()
    with pytest.raises(ArtifactError, match=f"the image {image.path} is not in s3://images/prod/eu"):
        await artifacts.read(image)


async def test_a_check_leaves_nothing_and_says_what_is_wrong(hasty: S3Artifacts, service: EmulatedS3) -> None:
    await hasty.check()
    assert service.objects == {}
    service.bucket = "another"
    with pytest.raises(
        ArtifactError, match=r"no image can be stored in s3://images/prod/eu .*: there is no such bucket"
    ):
        await hasty.check()


async def test_a_wrong_secret_is_told_from_a_wrong_bucket(bucket: Bucket, service: EmulatedS3) -> None:
    service.secret_key = "another"
    with pytest.raises(ArtifactError, match="the signature was not accepted; check the secret key"):
        await S3Artifacts(bucket, retries=0).check()


async def test_session_credentials_sign_too(service: EmulatedS3, bucket: Bucket) -> None:
    service.token = "a session"
    assert bucket.credentials
    write_credentials(bucket.credentials, service)
    artifacts = S3Artifacts(bucket)
    place = await artifacts.place(await put(artifacts), 60)
    async with httpx.AsyncClient(trust_env=False) as anybody:
        assert (await anybody.get(place.url)).content == b"pixels"


async def test_credentials_that_cannot_be_read_any_more_are_named(service: EmulatedS3, bucket: Bucket) -> None:
    artifacts = S3Artifacts(bucket)
    assert bucket.credentials
    bucket.credentials.unlink()
    with pytest.raises(ArtifactError, match=f"{bucket.credentials}: the S3 credentials cannot be read"):
        await artifacts.check()


def test_credentials_that_others_can_read_are_refused_with_the_remedy(bucket: Bucket) -> None:
    assert bucket.credentials
    bucket.credentials.chmod(0o640)
    with pytest.raises(ArtifactError, match=f"chmod 600 {bucket.credentials}"):
        S3Artifacts(bucket)
    assert stat.S_IMODE(bucket.credentials.stat().st_mode) == 0o640


@pytest.mark.parametrize("text", ["", "[other]\n", "[default]\naws_access_key_id = a\n", "a secret key\n"])
def test_a_file_without_credentials_is_named_and_not_quoted(text: str, tmp_path: Path) -> None:
    file = tmp_path / "credentials"
    file.write_text(text)
    file.chmod(0o600)
    with pytest.raises(ArtifactError, match=r"should hold a section \[default\]") as caught:
        read_credentials(file)
    assert "a secret key" not in str(caught.value)


async def test_a_file_goes_to_the_bucket_in_parts_and_comes_back_from_any_byte(
    artifacts: S3Artifacts, service: EmulatedS3
) -> None:
    content = bytes(range(256)) * 2**17  # two parts, as the bucket counts them
    draft = await artifacts.draft(FILE)
    for begin in range(0, len(content), 10**6):
        await draft.write(content[begin : begin + 10**6])
    assert f"prod/eu/{FILE}" not in service.objects
    await draft.keep()
    assert service.objects[f"prod/eu/{FILE}"][0] == content
    assert b"".join([piece async for piece in artifacts.stream(FILE)]) == content
    assert b"".join([piece async for piece in artifacts.stream(FILE, 10**7 + 3)]) == content[10**7 + 3 :]


async def test_a_file_that_is_given_up_leaves_nothing_in_the_bucket(
    artifacts: S3Artifacts, service: EmulatedS3
) -> None:
    draft = await artifacts.draft(FILE)
    await draft.write(b"x" * 2**25)
    await draft.drop()
    assert (service.objects, service.parts) == ({}, {})


async def test_a_file_that_was_kept_stays_whatever_goes_wrong_after_it(
    artifacts: S3Artifacts, service: EmulatedS3
) -> None:
    draft = await artifacts.draft(FILE)
    await draft.write(b"answers")
    await draft.keep()
    with capture_logs() as said:
        await draft.drop()
    assert service.objects[f"prod/eu/{FILE}"][0] == b"answers"
    assert said == [], "nothing was left that should be gone"


async def test_a_file_that_is_not_in_the_bucket_is_an_error(artifacts: S3Artifacts) -> None:
    with pytest.raises(ArtifactError, match="is not in"):
        _ = [piece async for piece in artifacts.stream(FILE)]
