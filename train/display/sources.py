"""`rounds sources`: the registered sets of rows."""

from rich.table import Table

from rounds.data_prep import sources

_SOURCES_LEGEND = "* for evaluation only   ? id, commit, files or columns could not be checked when the source was written"


def sources_table() -> Table:
    """List the registered sources: splits with their rows, kind of record, licence, hub repository and commit."""
    table = Table(box=None, header_style="bold", caption=_SOURCES_LEGEND, caption_justify="left")
    for heading in ("source", "splits and rows", "kind", "licence", "repository", "commit"):
        table.add_column(heading, overflow="fold", no_wrap=heading == "source")
    for name in sources.names():
        source = sources.load(name)
        splits = [_split(source, split) for split in source.splits]
        kinds = sorted({*source.splits.values(), *source.kind_by_format.values()})
        if len(kinds) > 1 and not source.kind_by_format:
            kinds = list(source.splits.values())  # each beside its split
        first = f"{source.repository or source.origin.partition(' at ')[0] or '-'}{'' if source.verified else ' ?'}"
        repository = "\n".join([first, *(f"{home.repository} ({split})" for split, home in source.homes.items())])
        commits = [source.revision or source.origin.partition(" at ")[2] or "-"]
        commit = "\n".join(str(each)[:10] for each in [*commits, *(home.revision for home in source.homes.values())])
        licence = source.licence or ("yours to state" if source.kind_by_format else "not stated")
        table.add_row(name, "\n".join(splits), "\n".join(kinds), licence, repository, commit)
    return table


def _split(source: sources.Source, split: str) -> str:
    rows = f" {source.sizes[split]:,}" if split in source.sizes else ""
    return f"{split}{'*' if split in source.evaluation_only else ''}{rows}"
