"""What must never reach a record: passwords and keys, in the configuration of a run or in the words of a job.

Configurations, manifests, results, job scripts and W&B keep their texts for ever. Every run is composed through
`refuse_secrets`, so that whatever is written of a run later has none.
"""

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from urllib.parse import SplitResult, parse_qsl, urlsplit

from convrepro.errors import ConvReproError

_SECRET = re.compile(r"api_?key|token|jwt|secret|passw|credential|signature|private_?key", re.IGNORECASE)
#: Keys in the query of a signed URL, beside those that look like a secret's name.
_SIGNED = {"sig", "key", "auth", "code", "policy"}
_VARIABLE = re.compile(r"\$\{\s*oc\.env\s*:\s*([^},\s]+)")
_URL = re.compile(r"\w+://[^\s'\"]+")
#: Texts that are keys by their form: of W&B, Hugging Face, GitHub, AWS, OpenAI, and the header of a private key.
KEY = re.compile(
    r"(?<!\w)(?:wandb_v1_\w+|hf_\w{20,}|gh[pousr]_\w{20,}|github_pat_\w+|AKIA[0-9A-Z]{16}|sk-[\w-]{20,})(?!\w)"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY"
)
#: A former key of W&B, which looks like a commit: a key where it is the whole value.
_FORMER = re.compile(r"(?:^|=)['\"]?[0-9a-f]{40}['\"]?$")
#: A secret's whole name and the text that is assigned to it: `token=abc`, but neither `token_mixer=x` nor `token=true`.
_ASSIGNED = re.compile(
    r"(?<![\w-])((?:[\w-]*[_-])?(?:api_?key|token|jwt|secret|passw(?:or)?d|credentials?|signature|private_?key))\s*[=:]\s*"
    r"['\"]?(?![\d.]*$|(?:true|false|null|none)\b|[$`])[^\s'\"]",
    re.IGNORECASE,
)
#: Characters of an environment variable from which on its value is no everyday word. Nor is a path a secret.
_LONG = 8
REMEDY = (
    "leave it out: have it read where it is used, from an environment variable (WANDB_API_KEY, HF_TOKEN) or ~/.netrc, "
    "or fetch the file and give its path"
)


@lru_cache(1024)
def is_secret(name: str) -> bool:
    """Whether a variable, key or option of this name holds something confidential, such as WANDB_API_KEY."""
    return bool(_SECRET.search(name))


def secret_in(text: str, confidential: Mapping[str, str] | None = None) -> str | None:
    """What kind of secret `text` holds, in words that do not repeat it; None where it holds none.

    Secrets are a variable of a secret's name that is read from the environment, and its value as it is; a URL with a
    password, signature or token; an assignment to a secret's name; and texts with the form of a key. `confidential`:
    the `confidential_variables` of now, where many texts are looked at.
    """
    for name in _VARIABLE.findall(text):
        if is_secret(name):
            return f"${{oc.env:{name}}}"
    for url in _URL.findall(text):
        parts = _split(url)
        if parts is not None and ("@" in parts.netloc or any(map(_signs, _parameters(parts)))):
            return f"a URL on {parts.netloc.rpartition('@')[2]} that carries a password or key"
    if KEY.search(text):
        return "a text that has the form of a key"
    if assigned := _ASSIGNED.search(text):
        return f"what is given by {assigned[1]}="
    for name, value in (confidential_variables() if confidential is None else confidential).items():
        if value in text:
            return f"the value of the environment variable {name}"
    return None


def confidential_variables() -> dict[str, str]:
    """The environment variables of a secret's name whose value is no everyday word and no path."""
    named = {name: value for name, value in os.environ.items() if is_secret(name)}
    return {name: value for name, value in named.items() if len(value) >= _LONG and value[0] not in "/~."}


def refuse_secrets(content: object) -> None:
    """Raises ConvReproError where a text in `content`, a tree of mappings and sequences, holds a secret, which the
    message does not repeat.
    """
    confidential = confidential_variables()
    for text in _texts(content):
        former = "a text that may be a key of W&B" if _FORMER.search(text) else None
        if what := secret_in(text, confidential) or former:
            raise ConvReproError(f"{what} would be written to the record of the run; {REMEDY}")


def _texts(content: object) -> Iterator[str]:
    """The texts in a tree; those of a mapping together with their keys, as `key=text`, too."""
    if isinstance(content, str):
        yield content
    elif isinstance(content, Mapping):
        for key, value in content.items():
            yield from _texts(value)
            if isinstance(value, str):
                yield f"{key}={value}"
    elif isinstance(content, Iterable):
        for value in content:
            yield from _texts(value)


def _split(url: str) -> SplitResult | None:
    try:
        return urlsplit(url)
    except ValueError:  # not an address
        return None


def _parameters(parts: SplitResult) -> list[str]:
    return [key for text in (parts.query, parts.fragment) for key, _ in parse_qsl(text)]


def _signs(key: str) -> bool:
    return is_secret(key) or key.lower() in _SIGNED
