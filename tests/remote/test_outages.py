"""What of a bucket's answers may be otherwise later, and what is the user's to mend."""

import pytest

from m4.remote import outages


class HttpError(Exception):
    def __init__(self, code, message=""):
        super().__init__(f"{message}, {code}")
        self.code = code


@pytest.mark.parametrize(
    "error",
    [
        HttpError(503),
        HttpError(500),
        HttpError(429),
        ConnectionResetError(),
        TimeoutError(),
        RuntimeError("UNAVAILABLE: CURL error Couldn't connect to server"),
        ValueError("ABORTED: All 6 retry attempts failed"),
        type("ClientConnectorDNSError", (Exception,), {})("Cannot connect"),
    ],
)
def test_an_outage_passes(error):
    assert outages.passes(error) and not outages.refuses(error)


@pytest.mark.parametrize(
    "error",
    [
        HttpError(403),
        HttpError(401, "Invalid Credentials"),
        OSError("Forbidden: b/x\nno"),
        ValueError("PERMISSION_DENIED: caller does not have storage.objects.get access"),
    ],
)
def test_a_refusal_does_not(error):
    assert outages.refuses(error) and not outages.passes(error)
    assert "gcloud auth" in outages.words(error) and "\n" not in outages.words(error)


@pytest.mark.parametrize("error", [ValueError("DATA_LOSS: bad checksum"), FileNotFoundError("x")])
def test_damage_is_neither(error):
    assert not outages.refuses(error) and not outages.passes(error)
