"""Memory of one device while a stage trains, by part, in bytes. All formulas of the planner's memory are here.

What is held follows from how this project trains (train/training/train.py) and from the code of what it trains with:

- torch alone (no DeepSpeed): fp32 weights, fp32 gradients, fp32 optimizer states; with precision bf16 autocast keeps a bf16
  copy of the linear weights during a pass. Several processes (DDP) have a second copy of the gradients in their buckets.
- DeepSpeed: weights in the precision, an fp32 master and the states in the optimizer (Rajbhandari et al. 2020,
  arXiv 1910.02054, section 3); stage 1 shards master and states over the ranks, 2 the gradients too, 3 the weights too.
- Activations: what autograd keeps of one layer of transformers' Llama, tensor by tensor, in the manner of Korthikanti et al.
  2022 (arXiv 2205.05198, section 4), with attention that never holds its scores (sdpa, FlashAttention).
- Logits: TRL's fused LM head (trl/kernels/chunked_logprob.py), which works in tiles of 4,096 tokens x 32,768 words.

Not counted: the CUDA context, NCCL's buffers, what the allocator cannot use. `RESERVE` stands for them.
train/forecast/README.md compares the formulas with measured peaks.
"""

from dataclasses import dataclass
from typing import Any

from rounds.train.config.training import Lora
from rounds.train.forecast.model_shape import Shape

RESERVE = 2.5 * 2**30
"""Bytes of a GPU that no tensor gets: about 0.5 GiB of context, 1 GiB of NCCL with 16 ranks, the rest fragmentation. A rule of
thumb of ours; set PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True to keep the last part small."""
STATES = {"adamw_torch": 8, "adamw_torch_fused": 8, "rmsprop": 4, "sgd": 0}
"""Bytes of fp32 optimizer state per trained parameter: two moments, one, none."""
TILE_TOKENS, TILE_WORDS = 4096, 32768


@dataclass(frozen=True)
class Setting:
    """How a stage trains: what of the recipe and the cluster row decides about memory."""

    micro_tokens: int
    """Tokens of one micro-batch, padding included."""
    longest: int
    """Tokens of its longest row."""
    optimizer: str
    accumulation: int = 1
    lora: Lora | None = None
    precision: str = "bf16"
    activation_checkpointing: bool = False
    ranks: int = 1
    deepspeed: dict[str, Any] | None = None
    on_gpu: bool = True
    dense_mask: bool = False
    """Attention has to be given a mask of longest x longest."""

    @property
    def zero(self) -> dict[str, Any]:
        """The ZeRO section of the DeepSpeed file."""
        return (self.deepspeed or {}).get("zero_optimization", {})

    @property
    def stage(self) -> int:
        """ZeRO stage, 0 without DeepSpeed."""
        return self.zero.get("stage", 0)

    @property
    def width(self) -> int:
        """Bytes of a weight: bf16 only under DeepSpeed, else autocast over fp32."""
        return 2 if self.deepspeed is not None and self.precision == "bf16" else 4

    @property
    def four_bit(self) -> bool:
        """Linear weights are in 4 bits, and all else, but for the adapter's optimizer, in the precision (train/weights/adapters.py)."""
        return self.lora is not None and self.lora.load_in_4bit

    @property
    def autocast(self) -> bool:
        """Compute in bf16 on fp32 weights. Weights in 4 bits are no such: they are there in bf16 only while one is multiplied."""
        return self.precision == "bf16" and self.width == 4 and not self.four_bit

    def offloads(self, what: str) -> bool:
        """Tell whether `optimizer` or `param` live in the host's memory."""
        return self.zero.get(f"offload_{what}", {}).get("device", "none") != "none"


@dataclass(frozen=True)
class Memory:
    """Bytes on one device, by part, and what of them is there at once at the worst moment."""

    weights: float = 0
    gradients: float = 0
    optimizer: float = 0
    activations: float = 0
    logits: float = 0
    reference: float = 0
    communication: float = 0
    step: float = 0
    """What an optimizer step needs besides, when the activations are gone."""
    gradients_wait: bool = True
    """Gradients are there during the forward pass: more than one micro-batch adds up in them."""

    @property
    def peak(self) -> float:
        """The larger of two moments: the end of a forward pass, and the optimizer's step."""
        still = self.weights + self.optimizer + self.reference + self.communication
        forward = self.activations + self.logits + (self.gradients if self.gradients_wait else 0)
        return still + max(forward, self.gradients + self.step)

    @property
    def between(self) -> float:
        """What is held between two optimizer steps, when neither gradients nor activations are there."""
        return self.weights + self.optimizer + self.reference + self.communication


def training(shape: Shape, how: Setting) -> Memory:
    """Return what one device holds while it trains. No reference model is held: DPO reads stored log-probabilities."""
    added = shape.adapter_parameters(how.lora) if how.lora else 0
    trained = added or shape.parameters
    share = how.ranks if how.stage else 1
    states = STATES[how.optimizer]
    if how.deepspeed is None:
        gradients, optimizer = 4 * trained, states * trained
        step = 4 * trained if how.on_gpu else 8 * shape.largest_module if not added else 0
    else:
        # The master is made even where the weights are fp32 already; a step turns the shard's gradients into fp32.
        width = 4 if how.deepspeed.get("data_types", {}).get("grad_accum_dtype") == "fp32" else how.width
        gradients = width * trained / (how.ranks if how.stage >= 2 else 1)
        optimizer = (4 + states) * trained / share
        step = (4 + 4) * trained / share
    if how.offloads("optimizer"):
        gradients, optimizer, step = (gradients if how.stage < 2 else 0), 0, 0
    return Memory(
        weights=_weights(shape, how, added),
        gradients=gradients,
        optimizer=optimizer,
        activations=_activations(shape, how),
        logits=_logits(shape, how, trains_head=not added),
        communication=_communication(shape, how, trained),
        step=step,
        gradients_wait=how.accumulation > 1 or how.deepspeed is not None,
    )


def scoring(shape: Shape, how: Setting) -> Memory:
    """Return what one device holds while a model, whole or in ZeRO-3's shards, scores tokens without gradients: one layer's
    tensors at a time."""
    width = 2 if how.precision == "bf16" else 4
    layer = how.micro_tokens * (width * (2 * shape.intermediate + 2 * shape.hidden) + 8 * shape.hidden)
    added = shape.adapter_parameters(how.lora) if how.lora else 0
    return Memory(
        weights=_weights(shape, how, added),
        activations=layer + _copies(shape, how),
        logits=_tile(shape, how, backward=False),
        communication=_communication(shape, how, 0) if how.stage == 3 else 0,
    )


def writing(shape: Shape, rows: int, longest: int, width: int) -> Memory:
    """Return what one device holds while a model in `width` bytes a weight writes `rows` answers at once, as long as they may become:
    weights, keys and values of all tokens, and of the next tokens' scores a copy in fp32, their probabilities, and the sums of these
    in fp64 (train/generation/decoding.py)."""
    cache = 2 * width * rows * longest * shape.layers * shape.key_value
    layer = rows * longest * width * (2 * shape.intermediate + 2 * shape.hidden)  # all prompts at once, before the first token
    return Memory(weights=width * shape.parameters, activations=cache + layer, logits=rows * shape.vocabulary * (width + 4 + 4 + 8))


def host(shape: Shape, how: Setting, nodes: int) -> float:
    """Return what offloading takes of one node's own memory: fp32 master and states, and the gradients of its ranks' shares, in
    fp32 where they are added up (Ren et al. 2021, arXiv 2101.06840, section 4); the weights, where they are offloaded too."""
    trained = shape.adapter_parameters(how.lora) if how.lora else shape.parameters
    states = (4 + STATES[how.optimizer] + 4) * trained if how.offloads("optimizer") else 0
    weights = how.width * shape.parameters if how.stage == 3 and how.offloads("param") else 0
    return (states + weights) / nodes


def checkpoint(shape: Shape, how: Setting) -> float:
    """Return the bytes on disk of one checkpoint, the files of all ranks together.

    Without DeepSpeed the trained weights and the optimizer's states, in fp32. With it, the optimizer's fp32 master and states, and
    but for ZeRO-3, where the master is all that there is, the trained weights once more.
    """
    trained = shape.adapter_parameters(how.lora) if how.lora else shape.parameters
    weights = 0 if how.deepspeed is None or how.stage == 3 else how.width
    return (4 + STATES[how.optimizer] + weights) * trained


def policy(shape: Shape, how: Setting) -> float:
    """Return the bytes on disk of what a training stage leaves behind: an adapter, or all weights, in the type they trained in."""
    return how.width * (shape.adapter_parameters(how.lora) if how.lora else shape.parameters)


def _weights(shape: Shape, how: Setting, added: int) -> float:
    """Weights of the model and of an adapter, as far as they stay on the device."""
    total: float = how.width * (shape.parameters + added)
    if how.lora is not None and how.four_bit:
        # nf4 in blocks of 64 with one scale each: 4 bytes, or 8 bits and a second scale for 256 blocks (Dettmers et al. 2023).
        bits = 4 + (8 / 64 + 32 / (64 * 256) if how.lora.bnb_4bit_use_double_quant else 32 / 64)
        kept = shape.parameters - shape.linear_parameters
        total = shape.linear_parameters * bits / 8 + 2 * kept + 2 * added
    if how.stage < 3:
        return total
    return 0 if how.offloads("param") else total / how.ranks


def _activations(shape: Shape, how: Setting) -> float:
    """What is kept for the backward pass, or with checkpointing each layer's input and all of one layer."""
    layer = how.micro_tokens * layer_bytes(shape, how)
    # What a layer's own backward pass makes beside what it reads: the gradients of the feed-forward part.
    inside = how.micro_tokens * (2 if how.precision == "bf16" else 4) * 2 * shape.intermediate
    copies = _copies(shape, how)
    mask = how.micro_tokens * how.longest * (1 if how.on_gpu else 4) if how.dense_mask else 0
    if how.activation_checkpointing:
        stream = 2 if how.precision == "bf16" and not how.autocast else 4
        copies = copies / shape.layers if how.autocast else copies
        return shape.layers * how.micro_tokens * stream * shape.hidden + layer + inside + copies + mask
    return shape.layers * layer + inside + copies + mask


def _copies(shape: Shape, how: Setting) -> float:
    """Copies of linear weights in what is computed in: autocast keeps all of a pass, bitsandbytes makes one at a time of those in
    4 bits (bitsandbytes/autograd/_functions.py, MatMul4Bit)."""
    if how.four_bit:
        return (2 if how.precision == "bf16" else 4) * max(i * o for _, i, o, _ in shape.linears)
    return 2 * shape.linear_parameters if how.autocast else 0


def layer_bytes(shape: Shape, how: Setting) -> float:
    """Bytes per token that autograd keeps of one layer of transformers' Llama.

    h is the width of the residual stream, q of all heads, k of the key (and value) heads, i of the feed-forward part:

                      norms (twice)                          attention                       feed-forward
        fp32          residual 4h, normalised 4h, out 4h     q 4q, k 4k, v 4k, out 4q        gate, silu, up, product 4i each
        bf16          fp32 copy 4h, normalised 2h, out 2h    the same in 2 bytes             the same in 2 bytes
        autocast      residual 4h, normalised 4h, cast 2h    2 bytes                         2 bytes

    and 4 bytes per head for the sums of attention's softmax.
    """
    h, i, k = shape.hidden, shape.intermediate, shape.key_value
    q = shape.heads * shape.head_width
    norms = 2 * h * (12 if how.precision != "bf16" else 10 if how.autocast else 8)
    width = 2 if how.precision == "bf16" else 4
    if how.dense_mask or not (how.on_gpu and how.precision == "bf16"):
        k = q  # keys and values are repeated for every head, but for the variable-length kernel of a GPU
    adapter = 0
    if how.lora is not None:
        # Frozen weights need no input for their own gradient, but each adapted layer keeps its input in the adapter's type,
        # and r numbers between its two matrices; layers with one input share it.
        adapter = width * sum(how.lora.r * times for _, _, _, times in shape.linears) / shape.layers
    return norms + width * (2 * q + 2 * k + 4 * i) + 4 * shape.heads + adapter


def _logits(shape: Shape, how: Setting, trains_head: bool) -> float:
    """The fused LM head's workspace in its backward pass: a tile of logits, and fp32 gradients of hidden states and head."""
    head = shape.vocabulary * shape.hidden * (4 + (2 if how.width == 2 else 0)) if trains_head else 0
    return _tile(shape, how, backward=True) + 4 * how.micro_tokens * shape.hidden + head


def _tile(shape: Shape, how: Setting, backward: bool) -> float:
    tokens = min(how.micro_tokens, TILE_TOKENS)
    buffer = tokens * TILE_WORDS * (2 if how.precision == "bf16" else 4)
    if how.on_gpu:
        return buffer  # a Triton kernel works in place
    words = min(shape.vocabulary, TILE_WORDS)
    return buffer + tokens * words * (33 if backward else 8)


def _communication(shape: Shape, how: Setting, trained: int) -> float:
    """Buckets of gradients on their way, and under ZeRO-3 the weights that are gathered at once."""
    if how.deepspeed is None:
        return 4 * trained if how.ranks > 1 else 0
    bucket = int(how.zero.get("reduce_bucket_size", 5e8)) * how.width
    buckets = bucket * (2 if how.zero.get("overlap_comm", False) else 1)
    if how.stage in (1, 2):
        return buckets if how.zero.get("contiguous_gradients", True) else 0
    if how.stage == 3:
        live = max(int(how.zero.get("stage3_max_live_parameters", 1e9)), shape.largest_module)
        return bucket + how.width * min(live, shape.parameters)
    return 0
