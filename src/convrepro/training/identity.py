"""Which run a configuration describes: its protocol with the content of data and weights, and its name."""

from collections.abc import Sequence
from pathlib import Path

from convrepro.config.paths import CONF
from convrepro.config.plan import operators
from convrepro.config.plugins import code, content, read
from convrepro.config.schema import RunConfig
from convrepro.config.scientific import scientific
from convrepro.models.weights import content_digest
from convrepro.runs.identity import Identity, former_digest, named
from convrepro.runs.protocol import Protocol
from convrepro.runs.result import Result
from convrepro.training.data import image_data

ADHOC = "adhoc"


def protocol_of(cfg: RunConfig) -> Protocol:
    """The protocol of a run, with the content of its data and of its starting weights.

    Raises ConvReproError where these are not there, as what is run without them would fail.
    """
    data = image_data(cfg)
    data.check()
    weights = content_digest(cfg.weights, cfg.weights_sha256) if cfg.weights else None
    places = {"data": cfg.data.root, "weights": cfg.weights}
    return Protocol(scientific(cfg), data.content(), weights, places)


def identity_of(cfg: RunConfig, overrides: Sequence[str], protocol: Protocol) -> Identity:
    """The name of the run; a run that was made under the name of an older version keeps that."""
    if cfg.table and cfg.row:
        return Identity(cfg.table, cfg.row, cfg.seed, cfg.budget.name)
    what = f"{cfg.model.replace(':', '.')}-{'pruned' if cfg.prune.by else cfg.conv.name}"
    identity = Identity(ADHOC, f"{what}-{protocol.digest[:8]}", cfg.seed, cfg.budget.name)
    texts = [o for o in overrides if o.startswith("budget.")] + named(overrides)
    former = Identity(ADHOC, f"{what}-{former_digest(texts)}", cfg.seed, cfg.budget.name)
    runs = Path(cfg.runs)
    return former if former.folder(runs).exists() and not identity.folder(runs).exists() else identity


def budget_label(cfg: RunConfig) -> str:
    """The name of the run's budget, with `, changed` where the run spends more or less than that budget does.

    A budget that takes the bundled sample in the place of the data set says so, and one that holds images out.
    """
    name = cfg.budget.name
    written = {**read(CONF / "train.yaml")["budget"], **content("budget", name)}
    whole = cfg.table is not None and "+" not in str(cfg.row)
    same = cfg.budget.model_dump() == written
    same &= whole or content("recipe", cfg.recipe.name).get("epochs") == cfg.recipe.epochs
    sample = " on the bundled sample" if cfg.budget.sample else ""
    sample += ", evaluated on held-out training images" if cfg.budget.holdout else ""
    return f"{name}{sample}" if same else f"{name}{sample}, changed"


def others_code(cfg: RunConfig) -> dict[str, dict[str, str | None]]:
    """The packages of plugins of which the run's network consists, with their version and a digest of their code."""
    return code(cfg.model, operators(cfg.conv.model_dump()))


def changed_code(cfg: RunConfig, result: Result) -> str:
    """The end of a sentence where plugins of a finished run are not what they were; empty where nothing is known."""
    then, now = (result.get("environment") or {}).get("plugins") or {}, others_code(cfg)
    changed = [name for name, was in then.items() if name in now and was.get("digest") != now[name]["digest"]]
    if not changed:
        return ""
    return f", although the code of {' and '.join(changed)} has changed since: to train again, move the folder away"
