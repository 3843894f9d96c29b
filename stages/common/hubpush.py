"""Bring a model to the Hub: one repository, one commit, so that nobody ever sees half of it.

The token comes from HF_TOKEN or from the library's own login, and is neither printed nor written.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from stages.common import uris
from stages.common.errors import PipelineError

if TYPE_CHECKING:
    from huggingface_hub.errors import HfHubHTTPError

T = TypeVar("T")

MESSAGE = "Publish the model"


def push(repo: str, contents: Mapping[str, Path | bytes], private: bool) -> str:
    """Make the repository `owner/name` unless it is there, and put the files into it by one commit.

    Files of the repository that `contents` does not name stay. Returns the address of the commit; of the one
    before where nothing differs. Raises PipelineError without a token, offline, and when the Hub refuses or
    does not answer.
    """
    uris.prepare()
    from huggingface_hub import CommitOperationAdd, HfApi, get_token
    from huggingface_hub.constants import is_offline_mode

    if is_offline_mode():
        raise PipelineError(f"{repo}: HF_HUB_OFFLINE is set; expected to be online for publish.push")
    token = get_token()
    if not token:
        raise PipelineError(f"{repo}: no token; expected HF_TOKEN, or a login by `hf auth login`")
    api = HfApi(token=token)

    def commit() -> str:
        # new operations at every attempt: they remember what became of them
        operations = [
            CommitOperationAdd(name, str(one) if isinstance(one, Path) else one)
            for name, one in sorted(contents.items())
        ]
        made = api.create_commit(repo, operations, commit_message=MESSAGE)
        return str(made.commit_url)

    _asked(repo, lambda: api.create_repo(repo, private=private, exist_ok=True))
    return _asked(repo, commit)


def _asked(repo: str, call: Callable[[], T]) -> T:
    """What `call` gets from the Hub, tried again while it is busy; its refusals in words about writing."""
    from huggingface_hub.errors import HfHubHTTPError

    def told() -> T:
        try:
            return call()
        except HfHubHTTPError as error:
            raise PipelineError(f"{repo}: {_refusal(error)}") from None
        except ValueError as error:
            if "README.md" in str(error):
                lines = " ".join(str(error).split())
                raise PipelineError(f"{repo}: {lines}; expected a card that the Hub takes") from None
            raise
        except RuntimeError as error:  # what hf_xet raises; it may repeat signed addresses
            reason = re.sub(r"\S+://\S+", "...", str(error).split("\n")[0])[:200]
            raise PipelineError(f"{repo}: {reason}; expected that the Hub takes the weights") from None

    return uris.ask(repo, told)


def _refusal(error: "HfHubHTTPError") -> str:
    status = error.response.status_code
    if status == 401:
        return (
            "401 from the Hub: the token is not valid, or may not see it; expected one that may write there"
        )
    if status == 403:
        return "403 from the Hub: the token may not write there; expected one that may"
    if status == 404:
        return "404 from the Hub: no such owner or repository; expected the owner and name of your own"
    return f"{status} from the Hub; expected that it takes the model"
