"""`rounds show`: everything that a stage's folder tells."""

from pathlib import Path

from rich.console import Console
from rich.text import Text

from rounds.train.display.scores import scores_table
from rounds.train.engine import claims, damage, store
from rounds.train.engine.digests import Memory
from rounds.train.engine.records import log_of


def stage(console: Console, folder: Path, whole_log: bool) -> None:
    """Print everything that a stage's folder tells."""
    spec, record = store.spec(folder), store.done(folder)
    state = record.status if record else "running" if claims.is_held(folder) else "not finished"
    damages = damage.quick(folder, Memory(folder.parent), spec.name)
    if damages:
        state = "damaged"
    console.print(Text.assemble((spec.name, "bold"), f" ({spec.function}, version {spec.version}): {state}"))
    console.print(f"folder  {folder}", highlight=False, soft_wrap=True)
    console.print(f"commit  {spec.git_commit}", highlight=False)
    for each in damages:
        console.print(f"damaged: {each.file} {each.says}", style="red", markup=False, highlight=False, soft_wrap=True)
    if damages:
        console.print(f"to mend it: {store.remedy([folder])}, and run the recipe again", style="bold", highlight=False, soft_wrap=True)
    console.print("inputs", style="bold")
    for name, entry in spec.inputs.items():
        console.print(f"  {name}: {entry.stage or entry.path}", highlight=False, markup=False, soft_wrap=True)
    console.print("params", style="bold")
    console.print_json(data=spec.params)
    if record:
        console.print("counts", style="bold")
        console.print_json(data=record.counts or {"because": record.because})
        console.print(f"files ({record.seconds:.1f} s of work)", style="bold")
        for name in record.digests:
            console.print(f"  {name}  {(folder / name).stat().st_size:,} bytes", highlight=False, markup=False)
    scores = {} if damages else store.scores(folder)
    if scores:
        console.print(scores_table(spec.name, {"score": scores}))
    failure = store.failure(folder)
    if failure:
        console.print(f"failed: {failure.message}", style="red", markup=False)
    log = log_of(folder, 0)
    if log.is_file():
        lines = log.read_text(errors="replace").splitlines()
        console.print(f"log (last {min(20, len(lines))} of {len(lines)} lines)" if not whole_log else "log", style="bold")
        for line in lines if whole_log else lines[-20:]:
            shown = line.rpartition("\r")[2]  # what a terminal would leave of a progress bar
            console.print(f"  {shown}", highlight=False, markup=False, soft_wrap=True)
