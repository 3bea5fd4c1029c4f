"""Where prompts and answers may go, to be answered or judged: nowhere but this machine, unless two people's files both say so.

In: who asks, such as a judge's section, and the endpoint that it names; or the stages of a run and its cluster file. Out: nothing, or a
`UserError` that says who must allow what. Rows of a user's own files that were not masked leave this machine in no case. No torch.
"""

import importlib.util
import ipaddress
from collections.abc import Iterable, Mapping
from typing import Protocol
from urllib.parse import urlsplit

from rounds.data_prep.errors import UserError, nearest
from rounds.data_prep.schema import SourceParams
from rounds.train.config.cluster import Cluster
from rounds.train.config.judging import Endpoint, Llm
from rounds.train.engine import store
from rounds.train.engine.graph import Stage, parents_first
from rounds.train.engine.params import ApiAnswersParams, RankParams

PACKAGE = 'a model behind an endpoint needs the package openai: pip install "rounds[judges]"'
BY_RECIPE = "allow_outside: true for this judge in the recipe"
BY_COMMAND = "--allow-outside"
BY_CLUSTER = "allow_outside: true for this endpoint in the cluster file"


class Asker(Protocol):
    """Who asks: a judge, or a stage that has a model answer. What it may spend, and whether texts may leave the machine."""

    @property
    def model(self) -> str | None:
        """What the endpoint calls the model."""

    @property
    def endpoint(self) -> str | None:
        """The endpoint's name in the cluster file."""

    @property
    def allow_outside(self) -> bool: ...
    @property
    def max_calls(self) -> int: ...
    @property
    def max_tokens(self) -> int: ...


def check_stages(stages: Iterable[Stage], cluster: Cluster) -> None:
    """Refuse judges and models whose endpoint the cluster file does not name, or may not be sent what they are to read; a line for each."""
    wrong = []
    for stage in stages:
        asker, allows = _asker(stage)
        if asker is None or not asker.endpoint:
            continue
        machine = cluster.machine(stage.row, stage.name)
        try:
            if importlib.util.find_spec("openai") is None:
                raise UserError(PACKAGE)
            endpoint = endpoint_of(asker, machine.endpoints)
            check(asker, endpoint, machine.offline, allows)
            if not is_here(endpoint.base_url):
                _unmasked(stage, asker)
        except UserError as error:
            wrong.append(f"{stage.name}: {error}")
    if wrong:
        raise UserError("\n".join(wrong))


def _asker(stage: Stage) -> tuple[Asker | None, str]:
    """Return who asks an endpoint in a stage, if anybody does, and how it would be allowed to ask elsewhere."""
    if isinstance(stage.params, ApiAnswersParams):
        return stage.params, BY_COMMAND
    judge = stage.params.judge if isinstance(stage.params, RankParams) else None
    return (judge if isinstance(judge, Llm) else None), BY_RECIPE


def endpoint_of(asker: Asker, endpoints: Mapping[str, Endpoint]) -> Endpoint:
    """Return the endpoint that is asked. Raises `UserError` where the cluster file has none of that name."""
    assert asker.endpoint
    if asker.endpoint not in endpoints:
        there = nearest(asker.endpoint, endpoints) if endpoints else "It names none"
        raise UserError(
            f"the cluster file names no endpoint {asker.endpoint!r} under `endpoints`. {there}: give "
            "{base_url: ..., key_variable: ...} there"
        )
    return endpoints[asker.endpoint]


def _unmasked(stage: Stage, asker: Asker) -> None:
    own = [
        each.name.removeprefix("source.")
        for each in parents_first([stage])
        if isinstance(each.params, SourceParams) and each.params.use.source == store.OWN_FILE and each.params.phi is None
    ]
    asked = [name for name in own if f"source.{name}" in _asked(stage)]
    if asked:
        raise UserError(
            f"endpoint {asker.endpoint} is another machine, and what tells who a person is was not masked in {', '.join(asked)}: take "
            "`phi: off` away there, or serve the model on this machine"
        )


def _asked(stage: Stage) -> set[str]:
    """Name the sources whose rows are prompts that this stage's answers are to."""
    prompts = [each for key, each in stage.inputs.items() if key.partition(".")[0] == "prompts" and isinstance(each, Stage)]
    mixed = [each for of in prompts for key, each in of.inputs.items() if key.startswith("source.") and isinstance(each, Stage)]
    return {each.name for each in (*prompts, *mixed)}


def check(asker: Asker, endpoint: Endpoint, offline: bool, allows: str = BY_RECIPE) -> None:
    """Raise `UserError` for an endpoint outside this machine, unless `allows`, in words, and the cluster file both allow it and nobody says
    `offline`."""
    if is_here(endpoint.base_url):
        return
    host = urlsplit(endpoint.base_url).hostname
    if offline:
        raise UserError(f"endpoint {asker.endpoint}: {host} is another machine, and the cluster file says offline: true")
    lacks = [way for way, allowed in ((allows, asker.allow_outside), (BY_CLUSTER, endpoint.allow_outside)) if not allowed]
    if lacks:
        raise UserError(
            f"endpoint {asker.endpoint}: {host} is another machine, and all prompts and answers would be sent there: set "
            f"{' and '.join(lacks)} if they may be, or serve the model on this machine"
        )


def is_here(url: str) -> bool:
    """Tell whether an address is this machine's own."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
