"""A bucket of one's own for each file of tests, and the folders that stand for places in it."""

import os

import pytest

from tests import bucket_server

pytest.importorskip("gcsfs")


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """Of a stand-in for the store, which this process and its children use."""
    with bucket_server.used(tmp_path_factory.mktemp("store")) as (found, _):
        yield found


@pytest.fixture
def url(address, request):
    """A place in the bucket that nothing has used."""
    return (
        f"gs://{bucket_server.BUCKET}/{request.node.name.partition('[')[0]}/{os.urandom(4).hex()}"
    )
