"""Error messages for failures of the Hugging Face hub, without secrets.

An error of the hub's client may contain the request with its token, and signed URLs. Callers therefore report
`safe_message(error)` and raise their own error outside of the `except` block, so that the original is not chained.
"""

import re
from collections.abc import Iterator

import httpx2
import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError

_INVALID_RESPONSE = (LookupError, TypeError, AttributeError)
"""Errors raised by huggingface_hub when the server's response is not as expected."""
HUB_ERRORS = (OSError, ValueError, RuntimeError, httpx2.HTTPError, *_INVALID_RESPONSE)
"""All errors that huggingface_hub may raise for a failed request."""


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and the chain of its causes."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def safe_message(error: BaseException) -> str:
    """The message of an error in one line, without access tokens and without the query strings of URLs."""
    chain = list(causes(error))
    text = str(next((one for one in chain if isinstance(one, HfHubHTTPError)), chain[-1])) or str(error)
    if isinstance(error, _INVALID_RESPONSE):
        text = f"its response is not a valid response of the hub ({type(error).__name__}: {error})"
    line = re.sub(r"(https?://[^\s?']+)\?[^\s']*", r"\1", " ".join(text.split())) or type(error).__name__
    token = huggingface_hub.get_token()
    line = line.replace(token, "<token>") if token else line
    return re.sub(r"\bhf_\w{8,}", "<token>", line).rstrip(".")
