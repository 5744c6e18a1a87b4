"""Which run a configuration describes: its protocol with the content of data and weights, and its name."""

from collections.abc import Sequence
from pathlib import Path

from convrepro.config.compose import choices, compose_config
from convrepro.config.schema import RunConfig
from convrepro.config.strict import text_of
from convrepro.errors import ConvReproError
from convrepro.models.weights import content_digest
from convrepro.runs.identity import Identity, former_digest, named
from convrepro.runs.plan import variant
from convrepro.runs.protocol import Protocol, differences, scientific
from convrepro.tables import Table
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
    what = f"{cfg.model}-{cfg.conv.name}"
    identity = Identity(ADHOC, f"{what}-{protocol.digest[:8]}", cfg.seed, cfg.budget.name)
    texts = [o for o in overrides if o.startswith("budget.")] + named(overrides)
    former = Identity(ADHOC, f"{what}-{former_digest(texts)}", cfg.seed, cfg.budget.name)
    runs = Path(cfg.runs)
    return former if former.folder(runs).exists() and not identity.folder(runs).exists() else identity


def check_row(cfg: RunConfig, overrides: Sequence[str], table: Table) -> None:
    """Raise ConvReproError where a run of another protocol would be filed under the name of a row of `table`."""
    row_name = str(cfg.row)
    row = table.row(row_name.partition("+")[0])
    own = compose_config([*table.overrides(row), f"budget={cfg.budget.name}"])
    wanted = variant(own, cfg, from_row=bool(row.weights_from))
    if row_name == row.id + wanted:
        return
    known = set(table.overrides(row))
    extra = [text for text in named(overrides) if text not in known and not text.startswith("weights=")]
    if wanted and row_name == f"{row.id}+{former_digest(extra)}":
        return
    key, was, now = next(differences(scientific(own), scientific(cfg)), ("weights", own.weights, cfg.weights))
    what = f"{key} is {text_of(now)} here and {text_of(was)} in the row"
    raise ConvReproError(
        f"row={row_name} of {table.name} is not this run: {what}; leave table and row out, or use "
        f"`convrepro run {table.name} --rows {row.id}` with the overrides behind it"
    )


def budget_label(cfg: RunConfig) -> str:
    """The name of the run's budget, with `, changed` where the run spends more or less than that budget does."""
    name, known = cfg.budget.name, choices("budget")
    files = compose_config([f"budget={name}"]) if name in known else None
    recipe = compose_config([f"recipe={cfg.recipe.name}"]).recipe if cfg.recipe.name in choices("recipe") else None
    whole = cfg.table is not None and "+" not in str(cfg.row)
    same = files is not None and cfg.budget == files.budget
    same &= whole or (recipe is not None and recipe.epochs == cfg.recipe.epochs)
    return name if same else f"{name}, changed"
