"""What must never reach a record: passwords and keys, in the overrides of a run or in what a cluster is told."""

import re
from collections.abc import Iterable
from urllib.parse import parse_qsl, urlsplit

from convrepro.errors import ConvReproError

_SECRET = re.compile(r"api_?key|token|jwt|secret|passw|credential|signature|private_?key", re.IGNORECASE)
#: Keys in the query of a signed URL, beside those that look like a secret's name.
_SIGNED = {"sig", "key", "auth", "code", "policy"}
_VARIABLE = re.compile(r"\$\{\s*oc\.env\s*:\s*([^},\s]+)")
_URL = re.compile(r"\w+://[^\s'\"]+")


def is_secret(name: str) -> bool:
    """Whether a variable, key or option of this name holds something confidential, such as WANDB_API_KEY."""
    return bool(_SECRET.search(name))


def refuse_secrets(texts: Iterable[str]) -> None:
    """Raises ConvReproError where one of `texts` reads a secret from the environment or holds one in a URL.

    Configurations, manifests and results keep these texts for ever. The value itself is not repeated in the message.
    """
    for text in texts:
        for name in _VARIABLE.findall(text):
            if is_secret(name):
                raise ConvReproError(f"${{oc.env:{name}}} would be written to the record of the run; leave it out")
        for url in _URL.findall(text):
            parts = urlsplit(url)
            if "@" in parts.netloc or any(
                is_secret(key) or key.lower() in _SIGNED for key, _ in parse_qsl(parts.query)
            ):
                raise ConvReproError(
                    f"a URL on {parts.hostname} carries a password or key, which would be written to the record of "
                    "the run; fetch the file and give its path"
                )
