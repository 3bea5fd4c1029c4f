"""The last job of an ablation on a cluster: compare the variants that are finished, all others having ended, well or not.

What is compared was written down when the jobs were submitted, in the `stage.json` of the report and of all that it reads: the
ablation file and its recipes may have been edited since. Started as `python -m rounds.train.launch.compare FOLDER/job.json`.
"""

import sys
from pathlib import Path

from rounds.data_prep.errors import UserError
from rounds.train.engine import records, store, worker
from rounds.train.engine.graph import Stage
from rounds.train.engine.params import AblationReportParams
from rounds.train.engine.records import Failure
from rounds.train.plan import ablation


def main(job: worker.Job) -> None:
    """Make the page of the report's folder or, where variants are missing, of a folder of its own, and exit with 1."""
    report, root = store.planned(job.folder), job.folder.parent
    lost = {stage.key: f"{stage.name} is not finished" for stage in report.parents if not store.done(store.folder(root, stage))}
    if not lost:
        worker.main(job)
        return
    try:
        reduced = ablation.without(report, lost)
    except UserError as error:
        _tell(job.folder, str(error))
        sys.exit(1)
    folder = store.prepare(root, reduced)
    try:
        worker.main(job.model_copy(update={"folder": folder}))
    except SystemExit:
        failure = store.failure(folder)
        _tell(job.folder, f"{failure.message if failure else 'no page could be made'} (log: {records.log_of(folder, 0)})")
        raise
    note(job.folder, reduced)
    sys.exit(1)


def note(whole: Path, reduced: Stage) -> None:
    """Say in the folder of the report on all variants, for `rounds status`, which ones the page lacks, and where it is."""
    page = store.folder(whole.parent, reduced) / reduced.kind.page
    assert isinstance(reduced.params, AblationReportParams)
    _tell(whole, f"compared without {', '.join(reduced.params.missing)}: {page}")


def _tell(folder: Path, message: str) -> None:
    store.write_failure(folder, Failure(message=message, user_error=True))


if __name__ == "__main__":
    worker.end_with_parent()
    main(worker.Job.model_validate_json(Path(sys.argv[1]).read_text(encoding="utf-8")))
