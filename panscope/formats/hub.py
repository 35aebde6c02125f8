"""What goes wrong at the Hugging Face hub, in words that hold no secret.

An error of the hub's client may carry the request with its token, and addresses with signatures in them. So who tells
of one says `words(error)` and raises its own sentence outside of the `except` block, where nothing is chained to it.
"""

import re
from collections.abc import Iterator

import httpx2
import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError

_MISREAD = (LookupError, TypeError, AttributeError)
"""What huggingface_hub stumbles over where an answer is not what the hub gives."""
TROUBLE = (OSError, ValueError, RuntimeError, httpx2.HTTPError, *_MISREAD)
"""What huggingface_hub raises when something does not work."""


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what it came from."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def words(error: BaseException) -> str:
    """What an error says, in one line, without token and without the signatures that addresses may carry."""
    chain = list(causes(error))
    said = str(next((one for one in chain if isinstance(one, HfHubHTTPError)), chain[-1])) or str(error)
    if isinstance(error, _MISREAD):
        said = f"its answer is not one of the hub's ({type(error).__name__}: {error})"
    line = re.sub(r"(https?://[^\s?']+)\?[^\s']*", r"\1", " ".join(said.split())) or type(error).__name__
    token = huggingface_hub.get_token()
    line = line.replace(token, "<token>") if token else line
    return re.sub(r"\bhf_\w{8,}", "<token>", line).rstrip(".")
