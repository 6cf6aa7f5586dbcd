"""What a bucket that does not answer as it should has said."""

# Of the array store, of HTTP, of those who ask.
PASSING = ("UNAVAILABLE", "DEADLINE_EXCEEDED", "ABORTED", "CURL error", "retry attempts")
PASSING += ("ClientConnector", "ClientOSError", "ServerDisconnected", "ServerTimeout", "ProxyError")
REFUSED = ("PERMISSION_DENIED", "UNAUTHENTICATED", "Forbidden", "credentials", "Anonymous caller")
TOO_MANY, LATE, BROKEN = 429, 408, 500  # codes of HTTP; from the last one on the store's fault
ADVICE = "gcloud auth application-default login, or a service account that may"


def passes(error: BaseException) -> bool:
    """Whether it may be otherwise later: an outage of the network or the store."""
    code = _code(error)
    if isinstance(error, ConnectionError | TimeoutError) or code in (TOO_MANY, LATE):
        return True
    return (code or 0) >= BROKEN or any(words in _text(error) for words in PASSING)


def refuses(error: BaseException) -> bool:
    """Whether the store refuses this user."""
    return _code(error) in (401, 403) or any(words in _text(error) for words in REFUSED)


def words(error: BaseException) -> str:
    """An error in one line, with what to do."""
    text = " ".join(_text(error).split())[:200]
    if refuses(error):
        return f"no access ({text}): {ADVICE}"
    if isinstance(error, FileNotFoundError) or "NOT_FOUND" in text:
        return f"there is no such bucket ({text})"
    return text


def _code(error: BaseException) -> int | None:
    code = getattr(error, "code", None)
    return code if isinstance(code, int) else None


def _text(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
