"""A rehearsal of a run's inputs without the hub: every source's first rows, the model's parts, lm-eval's tasks.

`python -m rounds.train.offline.rehearsal RECIPE [FIELD=VALUE ...]` prints one line for each and ends with code 1 if one failed. Run it
under the variables of `rounds.train.offline.folder.environment`.
"""

import sys
from collections import Counter
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from rounds.data_prep import hub, sources
from rounds.data_prep.errors import UserError
from rounds.train.config import recipe
from rounds.train.engine.graph import Stage
from rounds.train.offline import needs
from rounds.train.offline.needs import Need
from rounds.train.plan import ablation, pipeline

ROWS = 100


def run(file: Path, overrides: Sequence[str]) -> bool:
    """Open everything that the recipe needs from the hub; print what was found and return whether all of it is well."""
    if ablation.is_ablation(file):
        stages = ablation.build_plan(file, Path(), tuple(overrides), read_files=False).stages
    else:
        loaded = recipe.load(file, tuple(overrides))
        stages = pipeline.build_plan(loaded, Path(), file.resolve().parent, read_files=False).stages
    well = True
    for stage in stages:
        if stage.kind.reads_source and needs.of([stage]):
            well &= _told(stage.name, lambda stage=stage: _source(stage))
    for need in needs.of(stages):
        if need.kind != "dataset":
            opened = _judge if need.judge else _model if need.kind == "model" else _task
            well &= _told(f"{'judge' if need.judge else need.kind} {need.name}", lambda need=need, opened=opened: opened(need))
    return well


def _told(name: str, opened) -> bool:
    try:
        print(f"ok       {name}: {opened()}", flush=True)
    except Exception as error:
        kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
        print(f"PROBLEM  {name}: {kind}{(str(error) or 'no message').splitlines()[0]}", flush=True)
        return False
    return True


def _source(stage: Stage) -> str:
    use = needs.use_of(stage)
    source = sources.load(use.source)
    dropped: Counter[str] = Counter()
    read = bad = 0
    found: list[str] = []
    for index, row in enumerate(islice(source.rows(use), ROWS)):
        read += 1
        try:
            if not isinstance(row, sources.RowError):
                found = found or [str(name) for name in row]
            source.convert(row, index, use)
        except sources.RowError as error:
            dropped[str(error)] += 1
            bad += error.bad
    if not read or bad / read > max(use.max_bad_share, 0.2):  # the first rows of a set are no fair sample of it
        raise UserError(
            f"{bad} of the first {read} rows do not fit {dict(dropped)}; columns expected: "
            f"{', '.join(source.columns_of(use))}; found: {', '.join(found) or 'none'}"
        )
    return f"{read - dropped.total()} of the first {read} rows become records" + (f" {dict(dropped)}" if dropped else "")


def _model(need: Need) -> str:
    from rounds.train.weights import models

    model, tokenizer = models.open_folder(str(hub.download(need.name, need.revision, need.patterns, "model")))
    return f"{model.config.model_type}, {len(tokenizer)} tokens, {models.count_parameters(model)['parameters']:,} parameters"


def _judge(need: Need) -> str:
    from rounds.train.judging import opening

    where = str(hub.download(need.name, need.revision, need.patterns, "model"))
    config, tokenizer = opening.config_of(where, None), opening.tokenizer_of(where, None)
    return f"{config.model_type}, {len(tokenizer)} tokens, licence {need.licence}"


def _task(need: Need) -> str:
    from lm_eval.tasks import TaskManager

    tasks = TaskManager().load([need.name])["tasks"]
    return f"{len(tasks)} subtasks, {sum(len(list(task.eval_docs)) for task in tasks.values())} rows"


if __name__ == "__main__":
    sys.exit(0 if run(Path(sys.argv[1]), sys.argv[2:]) else 1)
