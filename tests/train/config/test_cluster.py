"""Cluster files: whatever stands in a field, one message with file and field comes out, and soon."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from rounds.data_prep.errors import UserError
from rounds.train.config import cluster
from rounds.train.config.cluster import Cluster, Machine
from rounds.train.engine.batches import micro_batches

CLUSTERS = Path(__file__).parents[3] / "recipes" / "clusters"
ODD = [None, 0, -1, 1.5, 1e12, 10**30, float("nan"), "", "x", "\0", "/", "~nobody", "é" * 300, "$(id)", "a\nb", [], {}, [[]],
       {"x": None}, True]  # fmt: skip


def places(node: Any, path: tuple = ()) -> Iterator[tuple]:
    for key, child in node.items() if isinstance(node, dict) else ():
        yield (*path, key)
        yield from places(child, (*path, key))


def changed(data: Any, place: tuple, value: Any) -> Any:
    data = copy.deepcopy(data)
    node = data
    for key in place[:-1]:
        node = node[key]
    node[place[-1]] = value
    return data


@pytest.mark.parametrize("name", ["slurm-8xh100.yaml", "local.yaml"])
def test_an_odd_value_in_any_field_is_one_message_or_fine(tmp_path: Path, name: str):
    data = {**yaml.safe_load((CLUSTERS / name).read_text()), "extends": str(CLUSTERS / "local.yaml")}
    file, escaped, refused = tmp_path / "odd.yaml", {}, 0
    for place in places(data):
        for value in ODD:
            file.write_text(yaml.safe_dump(changed(data, place, value), allow_unicode=True))
            try:
                assert isinstance(cluster.load(file), Cluster)
            except UserError as error:
                refused += 1
                assert str(error).startswith(str(file)), error
            except Exception as error:
                escaped[(*place, repr(value)[:20])] = f"{type(error).__name__}: {str(error)[:80]}"
    assert not escaped and refused > 50


def test_processes_that_divide_no_batch_are_refused_at_any_size():
    with pytest.raises(UserError, match="does not divide"):
        micro_batches(999_983, Machine(nodes=4096, processes=128))
