"""A job in an object store: a server on this machine that speaks S3."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from moto.server import ThreadedMotoServer

from clip4str.bulk import inputs
from clip4str.bulk.job import Job, finish, work
from clip4str.bulk.storage import Place, locate
from samples.demo import free_ports
from tests.model.bulk.pictures import page, png

NAMES = ("a/1.png", "a/2.png", "b.png")


@pytest.fixture(scope="module")
def settings() -> Iterator[str]:
    """What a URL says of the server."""
    (port,) = free_ports(1)
    server = ThreadedMotoServer("127.0.0.1", port, verbose=False)
    server.start()
    yield f"endpoint_override=http%3A%2F%2F127.0.0.1%3A{port}&region=us-east-1&allow_bucket_creation=true"
    server.stop()


@pytest.fixture
def crops(settings: str, monkeypatch: pytest.MonkeyPatch) -> Place:
    """Images in a bucket."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "name")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    place = locate(f"s3://bucket/crops?{settings}")
    place.prepare()
    for name in NAMES:
        place.put(place.inside(name), png(page()))
    return place


@pytest.mark.parametrize(
    ("pattern", "names"), [("", NAMES), ("/", NAMES), ("/*", ["b.png"]), ("/**/1.png", ["a/1.png"])]
)
def test_objects_are_found(pattern: str, names: list[str], crops: Place, settings: str) -> None:
    found = inputs.find(locate(f"s3://bucket/crops{pattern}?{settings}"))
    assert list(found.files) == [crops.inside(name) for name in names]
    assert crops.url(crops.inside(names[0])) == f"s3://bucket/crops/{names[0]}"


def test_a_job_goes_on(crops: Place, settings: str) -> None:
    job = Job(
        input=f"s3://bucket/crops?{settings}",
        output=f"s3://bucket/readings?{settings}",
        model="default",
        revision="sha256:1",
        shard_crops=1,
    )
    begun = work(job)
    assert (begun.crops, begun.base) == (len(NAMES), crops.path)
    output = locate(job.output)
    output.put(output.inside(begun.shards[1].result), b"rows")
    again = work(job)
    assert [shard.number for shard in again.todo] == [0, 2]
    finish(again)
    assert list(output.files()) == ["bucket/readings/part-000001.parquet"]
    assert output.content("bucket/readings/part-000001.parquet") == b"rows"
