"""Where and how fast each kind of stage runs: the rows of `recipes/clusters/*.yaml`. Nothing here is in a stage key."""

import json
import sys
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import BeforeValidator, Field, model_validator

from rounds.data_prep.errors import UserError
from rounds.data_prep.schema import Between, FieldError, Name, Section
from rounds.train.config import own_file, yaml_file
from rounds.train.config import slurm as slurm_fields
from rounds.train.config.gpus import GpuName
from rounds.train.config.judging import Endpoint
from rounds.train.config.slurm import AbsolutePath, Resources

S = TypeVar("S", bound=Section)
RowName = Literal["cpu", "train", "infer", "generate"]
PairBatching = Literal["auto", "padded", "packed", "shared_prefix"]
FROM_RECIPE = {
    "train_batch_size": "global_batch_size",
    "train_micro_batch_size_per_gpu": "micro_batch_size of the row",
    "gradient_accumulation_steps": "global_batch_size",
    "gradient_clipping": "max_grad_norm",
    "optimizer": "optim, learning_rate, ...",
    "scheduler": "lr_scheduler_type, warmup_steps",
    "bf16": "precision of the row",
    "fp16": "precision of the row",
}
"""What a DeepSpeed file may not say, and who says it: two places would come to differ."""


def _deepspeed(value: Any) -> Any:
    """Read the file that a row names, so that a job on another node carries its content."""
    if isinstance(value, str):
        try:
            text = own_file.text(Path(value), "JSON")
        except (UserError, OSError) as error:
            raise ValueError(f"{error}; give a file of recipes/deepspeed") from None
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{value}: not valid JSON: {error}") from None
        if not isinstance(value, dict):
            raise ValueError(f"expected a JSON object in the DeepSpeed file, found {type(value).__name__}")
    for name in value if isinstance(value, dict) else ():
        if name in FROM_RECIPE:
            raise ValueError(f"leave {name!r} out of the DeepSpeed file: it follows from {FROM_RECIPE[name]}")
    return value


class Machine(Section):
    """One kind of stage: `cpu` (data, packing, reports), `train` (sft, reference, dpo), `infer` (evaluate), `generate` (answers, and
    judges with weights)."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto` takes a GPU where torch sees one."""
    gpu: GpuName | None = None
    """Kind of the GPUs, such as `h100-80`: `rounds plan` then says what a stage needs of them. Nothing else reads it."""
    nodes: Annotated[int, Field(gt=0, le=4096)] = 1
    """Machines that one stage of the rows `train` and `generate` runs on. More than one needs a SLURM cluster."""
    processes: Annotated[int, Field(gt=0, le=128)] = 1
    """Processes per node that train together, or share what is to be written, one per GPU. The answer does not depend on it."""
    deepspeed: Annotated[dict[str, Any] | None, BeforeValidator(_deepspeed)] = None
    """A file such as `deepspeed/zero3.json`, beside the cluster file, above it, or of the project: how DeepSpeed spreads
    weights, gradients and optimizer over the processes. None keeps a whole copy in each (torch's DDP)."""
    threads: Annotated[int, Between(1, 4096, "no node has more cores")] | None = None
    """CPU threads of torch, and processes of data preparation; None takes every core. Another count of threads can change
    the last bit of a result, another count of processes changes nothing."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Arithmetic of forward and backward passes. bf16 is autocast over fp32 weights, and the policy is saved in fp32; under
    DeepSpeed the weights themselves are bf16, with fp32 masters in the optimizer, and the policy is saved in bf16."""
    micro_batch_size: Annotated[int, Between(1, 65536, "a device holds no more rows at once")] = 8
    """Rows or pairs per device and pass; accumulation makes up the recipe's global batch."""
    eval_batch_size: Annotated[int, Between(1, 65536, "a device holds no more sequences at once")] = 32
    """Sequences per pass where nothing is trained."""
    engine_python: AbsolutePath | None = None
    """Of the row `generate`: the Python of an environment with vLLM, for answers whose `engine` is `vllm`."""
    device_map: Literal["auto"] | None = None
    """`auto` spreads one model, layer by layer, over all GPUs that an `infer` stage has: for models that fit no single GPU."""
    attn_implementation: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    """Attention kernel of transformers. Under `sdpa` packed conversations are computed one by one where the model allows it, on a GPU
    in bf16 by the FlashAttention that torch brings; `flash_attention_2` wants the package flash-attn."""
    use_liger_kernel: bool = False
    """Liger's Triton kernels for norms, rotation and feed-forward: less memory and time on a GPU. Needs `pip install liger-kernel`, and
    rounds differently in the last bits."""
    pair_batching: PairBatching = "auto"
    """How DPO and its reference compute a micro-batch of pairs. `padded`: every side a row as long as the longest. `packed`: all
    sides in one row without padding. `shared_prefix`: the same, what both sides of a pair begin with only once. `auto`:
    `shared_prefix` where the model's attention allows it, else `padded`."""
    activation_checkpointing: bool = False
    """Recompute activations in the backward pass: about 30 % slower, far less memory."""
    save_steps: Annotated[int, Between(1, 10_000_000, "no run has more steps")] | None = None
    """Write a checkpoint every this many optimizer steps. None: every 100, or where `save_minutes` is given by the clock alone."""
    save_minutes: Annotated[float, Between(1e-6, 525_600, "a year")] | None = None
    """Write one when the last is this old; a queue that may take the nodes away any time wants about 20. What a step takes differs
    by stage and cluster, and so does what a checkpoint costs: 70B's is about 1 TB."""
    save_total_limit: Annotated[int, Between(2, 1000, "the older is removed before the newer is known to be whole")] = 2
    """Checkpoints kept while a stage trains; all are removed when it is done. Two at least: the older one is removed before
    the newer is known to be whole."""
    slurm: Resources = Resources()
    """What a job asks of SLURM, where it differs from the file's own `slurm` section."""
    endpoints: dict[Name, Endpoint] = Field(default_factory=dict)
    """Servers that judges of this row's stages are asked at, beside the file's own `endpoints`."""
    offline: bool = False
    """Nothing of this row's stages is sent to another machine; so with the file's own `offline`."""

    @property
    def world_size(self) -> int:
        """Processes over all nodes."""
        return self.nodes * self.processes

    @property
    def steps_between_saves(self) -> int:
        """Optimizer steps after which a checkpoint is written whatever the clock says."""
        return self.save_steps or (100 if self.save_minutes is None else sys.maxsize)

    @property
    def zero_stage(self) -> int:
        """Return DeepSpeed's ZeRO stage: 1 shards the optimizer, 2 the gradients too, 3 the weights too; 0 nothing."""
        return (self.deepspeed or {}).get("zero_optimization", {}).get("stage", 0)

    @model_validator(mode="after")
    def _offload_needs_zero(self) -> "Machine":
        zero = (self.deepspeed or {}).get("zero_optimization", {})
        if self.deepspeed is not None and zero.get("stage") not in (0, 1, 2, 3):
            raise ValueError(f"a DeepSpeed file needs zero_optimization.stage 0, 1, 2 or 3; found {zero.get('stage')!r}")
        if zero.get("stage") == 3 and zero.get("stage3_gather_16bit_weights_on_model_save") is False:
            raise ValueError(
                "zero_optimization.stage3_gather_16bit_weights_on_model_save must not be false: without it no policy "
                "could be saved in one piece"
            )
        return self


StoreAccess = Literal["owner", "group", "umask"]


class Cluster(Section):
    """The rows. One that is left out takes the defaults; `generate` is then as `infer` is."""

    kind: Literal["local", "slurm"] = "local"
    """`local` runs the plan on this machine, one stage after the other; `slurm` submits one job per stage."""
    offline: bool = False
    """Never ask the hub: `fetched` holds all that the recipe needs from it, or the run says at once what is missing."""
    fetched: Path | None = None
    """With `offline`: the folder that `rounds fetch RECIPE --to FOLDER` filled, seen by every node. Relative to this file."""
    cpu: Machine = Machine()
    train: Machine = Machine()
    infer: Machine = Machine()
    generate: Machine | None = None
    stages: dict[str, Machine] = Field(default_factory=dict)
    """Rows for single stages, by name or pattern (`dpo.third`, `evaluate.*`), that state what differs; later ones win."""
    endpoints: dict[Name, Endpoint] = Field(default_factory=dict)
    """Servers that judges are asked at, by the names that recipes call them by: {base_url: ..., key_variable: ...}."""
    slurm: Resources = Resources()
    """What every job asks of SLURM, unless its row or stage says otherwise."""
    store: AbsolutePath | None = None
    """The store that all nodes see; `--store` goes before it."""
    store_access: StoreAccess = "owner"
    """Who may open the stages that hold what rows of your own files say: `owner` (mode 0700), `group` (0770), or whoever the `umask`
    lets in, as for all other stages. Counts when such a stage's folder is made; later `chmod` does it."""
    preflight: bool = False
    """Begin each run with a job that checks the nodes, as `rounds preflight` does, and runs nothing if they fail."""

    @model_validator(mode="after")
    def _fetched_is_for_offline(self) -> "Cluster":
        if self.fetched is not None and not self.offline:
            raise FieldError("is used only with `offline: true`", "fetched")
        return self

    @model_validator(mode="after")
    def _slurm_is_for_slurm(self) -> "Cluster":
        asked = [self.slurm, *(row.slurm for row in (self.cpu, self.train, self.infer, self.generate or Machine(), *self.stages.values()))]
        if self.kind == "local" and (self.preflight or any(section.model_fields_set for section in asked)):
            raise ValueError("the file asks something of SLURM; say kind: slurm, or take it out")
        return self

    @model_validator(mode="after")
    def _only_training_is_spread(self) -> "Cluster":
        for name in ("cpu", "infer"):
            for field in ("nodes", "processes"):
                if getattr(getattr(self, name), field) > 1:
                    raise FieldError(
                        "only stages of the rows `train` and `generate` have several processes; every other is one"
                        f"{', which device_map: auto lets use all GPUs of its node' if name == 'infer' else ''}",
                        name,
                        field,
                    )
        if self.generate and self.generate.device_map and self.generate.processes > 1:
            raise FieldError("expected 1 with device_map: auto, which gives one process all GPUs of its node", "generate", "processes")
        return self

    @property
    def rows(self) -> dict[RowName, Machine]:
        """Every row by its name, with what stands in for one that is left out."""
        return {"cpu": self.cpu, "train": self.train, "infer": self.infer, "generate": self.generate or self.infer}

    def machine(self, name: RowName, stage: str = "") -> Machine:
        """Return the row of that name, as it is for one stage: with what the file says of all jobs and of that stage."""
        machine = self.rows[name]
        given = {"slurm": _over(self.slurm, machine.slurm), "endpoints": {**self.endpoints, **machine.endpoints}}
        machine = machine.model_copy(update={**given, "offline": self.offline or machine.offline})
        for pattern, differing in self.stages.items():
            if fnmatchcase(stage, pattern):
                machine = _over(machine, differing)
        return machine


def _over(base: S, differing: S) -> S:
    """Lay one section over another: a field that it leaves out stays."""
    given = {name: getattr(differing, name) for name in differing.model_fields_set}
    below = {name: getattr(base, name) for name in given}
    merged = {
        name: _over(below[name], value) if isinstance(value, Section) and type(value) is type(below[name]) else value
        for name, value in given.items()
    }
    return base.model_copy(update=merged)


def load(path: Path | None) -> Cluster:
    """Read a cluster file; None gives the defaults: this machine. Raises `UserError` for rows that contradict themselves."""
    if path is None:
        return Cluster()
    cluster = yaml_file.load(path, Cluster)
    if cluster.kind == "slurm":
        for name in get_args(RowName):
            machine = cluster.machine(name)
            slurm_fields.check(machine.slurm, f"{path}: {name}.slurm", machine.processes if name in ("train", "generate") else 1)
    return cluster
