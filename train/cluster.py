"""Where and how fast each kind of stage runs: the rows of `recipes/clusters/*.yaml`. Nothing here is in a stage key."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from data_prep.schema import Section
from train import yaml_file

RowName = Literal["cpu", "train", "infer"]


class Row(Section):
    """One kind of stage: `cpu` (data, packing, reports), `train` (sft, dpo), `infer` (evaluate, reference)."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto` takes a GPU where torch sees one."""
    threads: Annotated[int, Field(gt=0)] | None = None
    """CPU threads of torch, and processes of data preparation; None takes every core. Another count of threads can change
    the last bit of a result, another count of processes changes nothing."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Arithmetic of forward and backward passes; bf16 is autocast over fp32 weights."""
    micro_batch_size: Annotated[int, Field(gt=0)] = 8
    """Rows or pairs per device and pass; accumulation makes up the recipe's global batch."""
    eval_batch_size: Annotated[int, Field(gt=0)] = 32
    """Sequences per pass where nothing is trained."""
    attn_implementation: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    """Attention kernel of transformers."""
    activation_checkpointing: bool = False
    """Recompute activations in the backward pass: about 30 % slower, far less memory."""
    save_steps: Annotated[int, Field(gt=0)] = 100
    """Write a checkpoint every this many optimizer steps."""
    save_total_limit: Annotated[int, Field(ge=2)] = 2
    """Checkpoints kept while a stage trains; all are removed when it is done. Two at least: the older one is removed before
    the newer is known to be whole."""


class Cluster(Section):
    """The three rows. A row that is left out takes the defaults."""

    kind: Literal["local"] = "local"
    """`local` runs the plan on this machine, one stage after the other."""
    cpu: Row = Row()
    train: Row = Row()
    infer: Row = Row()

    def row(self, name: RowName) -> Row:
        """Return the row of that name."""
        return getattr(self, name)


def load(path: Path | None) -> Cluster:
    """Read a cluster file; None gives the defaults: this machine."""
    return yaml_file.load(path, Cluster) if path else Cluster()
