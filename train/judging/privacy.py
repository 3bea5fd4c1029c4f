"""Where prompts and answers may go to be judged: nowhere but this machine, unless recipe and cluster file both say so.

In: a judge's section and the endpoint that it names; or the stages of a run and its cluster file. Out: nothing, or a `UserError` that says
who must allow what. Rows of a user's own files that were not masked leave this machine in no case. No torch.
"""

import ipaddress
from collections.abc import Iterable
from urllib.parse import urlsplit

from rounds.data_prep.errors import UserError, nearest
from rounds.data_prep.schema import SourceParams
from rounds.train.config.cluster import Cluster
from rounds.train.config.judging import Endpoint, Llm
from rounds.train.engine import store
from rounds.train.engine.graph import Stage, parents_first
from rounds.train.engine.params import RankParams


def check_stages(stages: Iterable[Stage], cluster: Cluster) -> None:
    """Refuse judges whose endpoint the cluster file does not name, or may not be sent what they are to judge; a line for each."""
    wrong = []
    for stage in stages:
        judge = stage.params.judge if isinstance(stage.params, RankParams) else None
        if not isinstance(judge, Llm) or not judge.endpoint:
            continue
        machine = cluster.machine(stage.row, stage.name)
        try:
            check(judge, endpoint_of(judge, machine.endpoints), machine.offline)
            if not is_here(machine.endpoints[judge.endpoint].base_url):
                _unmasked(stage, judge)
        except UserError as error:
            wrong.append(f"{stage.name}: {error}")
    if wrong:
        raise UserError("\n".join(wrong))


def endpoint_of(judge: Llm, endpoints: dict[str, Endpoint]) -> Endpoint:
    """Return the endpoint that a judge names. Raises `UserError` where the cluster file has none of that name."""
    assert judge.endpoint
    if judge.endpoint not in endpoints:
        there = nearest(judge.endpoint, endpoints) if endpoints else "It names none"
        raise UserError(
            f"the cluster file names no endpoint {judge.endpoint!r} under `endpoints`. {there}: give "
            "{base_url: ..., key_variable: ...} there"
        )
    return endpoints[judge.endpoint]


def _unmasked(stage: Stage, judge: Llm) -> None:
    own = [
        each.name.removeprefix("source.")
        for each in parents_first([stage])
        if isinstance(each.params, SourceParams) and each.params.use.source == store.OWN_FILE and each.params.phi is None
    ]
    asked = [name for name in own if f"source.{name}" in _asked(stage)]
    if asked:
        raise UserError(
            f"endpoint {judge.endpoint} is another machine, and what tells who a person is was not masked in {', '.join(asked)}: take "
            "`phi: off` away there, or serve the judge on this machine"
        )


def _asked(stage: Stage) -> set[str]:
    """Name the sources whose rows are prompts that this stage's answers are to."""
    prompts = stage.inputs["prompts"]
    assert isinstance(prompts, Stage)
    if isinstance(prompts.params, SourceParams):  # held-out rows are asked as they are
        return {prompts.name}
    return {each.name for key, each in prompts.inputs.items() if key.startswith("source.") and isinstance(each, Stage)}


def check(judge: Llm, endpoint: Endpoint, offline: bool) -> None:
    """Raise `UserError` for an endpoint outside this machine, unless recipe and cluster file both allow it and nobody says `offline`."""
    if is_here(endpoint.base_url):
        return
    host = urlsplit(endpoint.base_url).hostname
    if offline:
        raise UserError(f"endpoint {judge.endpoint}: {host} is another machine, and the cluster file says offline: true")
    lacks = [
        where
        for where, allowed in (
            ("this judge in the recipe", judge.allow_outside),
            ("this endpoint in the cluster file", endpoint.allow_outside),
        )
        if not allowed
    ]
    if lacks:
        raise UserError(
            f"endpoint {judge.endpoint}: {host} is another machine, and all prompts and answers would be sent there: set allow_outside: "
            f"true for {' and for '.join(lacks)} if they may be, or serve the judge on this machine"
        )


def is_here(url: str) -> bool:
    """Tell whether an address is this machine's own."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
