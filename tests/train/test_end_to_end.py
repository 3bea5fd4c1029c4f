"""Whole runs of a small recipe through the command line: repeated, changed, killed, shared, stopped, broken.

One undisturbed run is made once, by a fresh interpreter; the others start from a copy of its store where they can, and in this
process unless they are killed or run side by side. Only real parts: TRL trains, lm-eval scores, the operating system kills.

Covers: train/commands/report, train/commands/show, train/display/progress, train/display/stage, train/engine/twins, train/launch/local,
train/launch/preload.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.train import command_line

HERE = Path(__file__).parent
RECIPE, CLUSTER = HERE / "mini.yaml", HERE / "mini_cluster.yaml"
WAIT_SECONDS = 300


def rounds(*arguments: str | Path, store: Path, expect: int = 0) -> str:
    """Run the command line here, check its exit code, and return everything it printed."""
    output = command_line.here(*arguments, expect=expect, environment={"ROUNDS_STORE": str(store), "COLUMNS": "200"})
    assert "Traceback" not in output
    return output


def start(*arguments: str | Path, store: Path) -> subprocess.Popen[str]:
    """Start the command line in the background."""
    return command_line.start(*arguments, environment={"ROUNDS_STORE": str(store), "COLUMNS": "200"})


def run_mini(store: Path, *more: str, expect: int = 0) -> str:
    """Run the small recipe to its end."""
    return rounds("run", RECIPE, "--cluster", CLUSTER, *more, store=store, expect=expect)


def stages(store: Path, *more: str) -> dict[str, Path]:
    """Return the folder of every stage of the small recipe, by name."""
    lines = rounds("plan", RECIPE, "--keys", *more, store=store).split("\n")
    named = dict(line.split() for line in lines if line)
    return {name: next(iter(store.glob(f"*-{key}")), store / f"none-{key}") for name, key in named.items()}


def finished(store: Path) -> dict[str, float]:
    """Return when each finished stage of a store was finished."""
    return {path.parent.name: json.loads(path.read_text())["finished"] for path in store.glob("*/done.json")}


def weights(folder: Path) -> dict[str, str]:
    """Return the digests of a stage's weights."""
    digests = json.loads((folder / "done.json").read_text())["digests"]
    found = {name: digest for name, digest in digests.items() if name.endswith(".safetensors")}
    assert found
    return found


@pytest.fixture
def copied(undisturbed, tmp_path) -> Path:
    """A copy of that store, free to spoil."""
    return Path(shutil.copytree(undisturbed, tmp_path / "store"))


def test_the_data_card_goes_with_the_model_and_the_report_links_to_it(undisturbed):
    found = stages(undisturbed)
    manifest = json.loads((found["export"] / "model" / "manifest.json").read_text())
    assert set(manifest["sets"]) == {"sft", "first", "second"} and manifest["sets"]["sft"]["tokens"] > 1000
    assert set(manifest["sources"]) == {name.removeprefix("source.") for name in found if name.startswith("source.")}
    assert "[DATA_CARD.md](DATA_CARD.md)" in (found["export"] / "model" / "README.md").read_text()
    page = (found["report"] / "report.html").read_text()
    linked = f"../{found['manifest'].name}/DATA_CARD.md"
    assert f'href="{linked}"' in page and (found["report"] / linked).is_file()


def test_a_run_leaves_a_model_a_report_and_scores(undisturbed):
    found = stages(undisturbed)
    assert all((folder / "done.json").is_file() for folder in found.values())
    model = found["export"] / "model"
    assert {"model.safetensors", "config.json", "tokenizer.json", "generation_config.json", "README.md"} <= {
        path.name for path in model.iterdir()
    }
    assert "not for clinical use" in (model / "README.md").read_text().lower()
    assert (found["report"] / "report.html").stat().st_size > 10_000
    scores = json.loads((found["evaluate.second"] / "scores.json").read_text())
    assert scores["facts/acc"]["n"] == 24 and scores["facts/acc"]["stderr"] > 0
    assert not list(undisturbed.glob("*/checkpoints")) and not list(undisturbed.glob("*/cache"))


def test_a_run_connects_to_nothing_that_its_recipe_does_not_need(undisturbed, tmp_path):
    """Nothing of the small recipe is fetched, and the hub is not forbidden: what is left would be telemetry."""
    noted = Path(f"{undisturbed}.connections")
    assert not noted.exists(), noted.read_text()
    seen = tmp_path / "seen"  # the hook itself works
    environment = {**os.environ, "PYTHONPATH": str(command_line.CONNECTIONS), "ROUNDS_TEST_CONNECTIONS": str(seen)}
    look_up = "import socket; socket.create_connection(('192.0.2.1', 9), timeout=0.01)"
    subprocess.run([sys.executable, "-c", look_up], env=environment, capture_output=True)
    assert seen.read_text().startswith("192.0.2.1 by ")


def test_whoever_reads_a_stage_s_description_reads_its_result(undisturbed):
    for folder in stages(undisturbed).values():
        readable = (folder / "stage.json").stat().st_mode & 0o444
        for name in json.loads((folder / "done.json").read_text())["digests"]:
            assert (folder / name).stat().st_mode & 0o444 == readable, name


def test_the_exported_model_opens_with_transformers_alone(undisturbed):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = stages(undisturbed)["export"] / "model"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What class is it?"}], add_generation_prompt=True, return_tensors="pt"
    )
    written = model.generate(**prompt, max_new_tokens=4, do_sample=False)
    assert written.shape[1] > prompt["input_ids"].shape[1]
    assert tokenizer.eos_token_id in model.generation_config.eos_token_id


def test_a_second_run_computes_nothing(copied):
    before = finished(copied)
    output = run_mini(copied)
    assert "nothing was left to do" in output
    assert finished(copied) == before


def test_another_beta_in_the_second_round_runs_that_round_again_and_nothing_before(copied):
    before = finished(copied)
    plan = rounds("plan", RECIPE, "--set", "rounds.second.beta=0.3", store=copied)
    assert "dpo.beta 0.1 -> 0.3" in plan
    run_mini(copied, "--set", "rounds.second.beta=0.3")
    new = {name.rpartition("-")[0] for name in finished(copied).keys() - before.keys()}
    assert new == {"dpo", "answers", "evaluate", "gate", "export", "report"}
    assert {name: at for name, at in finished(copied).items() if name in before} == before
    assert len(list(copied.glob("dpo-*"))) == 3 and len(list(copied.glob("reference-*"))) == 2


def test_without_the_gate_or_with_another_the_same_round_is_not_trained_again(copied):
    """A gate's rules are in the keys of all behind it, since a plan cannot know what it will decide; the answer knows."""
    old = stages(copied)
    for change in ("gate=null", "gate.rules=[{metric: facts/acc, at_least: 0}]"):
        run_mini(copied, "--set", change)
        new = stages(copied, "--set", change)
        for name in ("dpo.second", "evaluate.second"):
            assert new[name] != old[name]
            assert json.loads((new[name] / "done.json").read_text())["same_as"]
        assert weights(new["dpo.second"]) == weights(old["dpo.second"])
        assert (new["export"] / "model" / "model.safetensors").read_bytes() == (old["export"] / "model" / "model.safetensors").read_bytes()
    # With another learning rate there is nothing to take over.
    run_mini(copied, "--set", "gate=null", "--set", "rounds.second.learning_rate=0.0002")
    other = stages(copied, "--set", "gate=null", "--set", "rounds.second.learning_rate=0.0002")["dpo.second"]
    assert json.loads((other / "done.json").read_text()).get("same_as") is None


def test_another_micro_batch_runs_nothing_again(copied, tmp_path):
    before = finished(copied)
    other = tmp_path / "cluster.yaml"
    other.write_text("train: {micro_batch_size: 1, save_steps: 7}\ninfer: {eval_batch_size: 3}\n")
    rounds("run", RECIPE, "--cluster", other, store=copied)
    assert finished(copied) == before


def test_one_process_without_torchrun_trains_with_deepspeed_to_the_same_weights(undisturbed, copied, tmp_path):
    """As on a single GPU with offload; DeepSpeed would look for MPI there."""
    from safetensors.numpy import load_file

    folder = stages(copied)["dpo.second"]
    (folder / "model" / "model.safetensors").unlink()
    cluster = tmp_path / "cluster.yaml"
    cluster.write_text("train: {device: cpu, threads: 1, deepspeed: deepspeed/zero3.json}\n")
    rounds("run", RECIPE, "--cluster", cluster, store=copied)
    old, new = (load_file(root / folder.name / "model" / "model.safetensors") for root in (undisturbed, copied))
    assert old.keys() == new.keys() and max(abs(old[name] - new[name]).max() for name in old) < 1e-5
    assert "DeepSpeed" in (folder / "log.txt").read_text()


@pytest.mark.parametrize("stage", ["sft", "dpo.first"])
@pytest.mark.parametrize("victim", ["launcher", "worker"])
def test_killed_in_the_middle_of_training_it_goes_on_to_the_very_same_weights(undisturbed, copied, stage, victim):
    expected = {name: weights(folder) for name, folder in stages(undisturbed).items() if name.startswith(("sft", "dpo", "exp"))}
    found = stages(copied)
    folder = found[stage]
    for name in [stage, *after(stage, found)]:
        shutil.rmtree(found[name], ignore_errors=True)
    process = start("run", RECIPE, "--cluster", CLUSTER, store=copied)
    worker = wait_for_step(folder, past=5, process=process)
    os.kill(process.pid if victim == "launcher" else worker, signal.SIGKILL)
    output, _ = process.communicate(timeout=WAIT_SECONDS)
    assert process.returncode != 0 and "Traceback" not in output
    wait_until(lambda: not alive(worker), "the worker outlives its launcher")
    assert not (folder / "done.json").exists()
    assert list(folder.glob("checkpoints/checkpoint-*/rounds-complete.json"))

    run_mini(copied)
    assert json.loads((folder / "done.json").read_text())["counts"]["resumed_from"] is not None
    assert {name: weights(stages(copied)[name]) for name in expected} == expected


def test_two_runs_at_once_share_the_work(copied):
    found = stages(copied)
    redone = ["dpo.first", *after("dpo.first", found)]
    for name in redone:
        shutil.rmtree(found[name])
    both = [start("run", RECIPE, "--cluster", CLUSTER, store=copied) for _ in range(2)]
    outputs = [process.communicate(timeout=WAIT_SECONDS)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    for name in redone:
        assert (found[name] / "log.txt").read_text().count(" starts\n") == 1
    assert any("waiting for process" in output for output in outputs)


def test_a_gate_that_stops_ends_the_rounds_but_not_the_run(copied):
    stop = ["--set", "gate={rules: [{metric: facts/acc, at_least: 0.99}], on_reject: stop, too_few: reject}"]
    output = run_mini(copied, *stop)
    found = stages(copied, *stop)
    assert json.loads((found["gate.first"] / "decision.json").read_text())["decision"] == "rejected"
    for name in ("dpo.second", "evaluate.second"):
        record = json.loads((found[name] / "done.json").read_text())
        assert record["status"] == "skipped" and "gate.first: rejected" in record["because"]
    assert weights(found["export"]) and (found["report"] / "report.html").is_file()
    assert "skipped" in output and "takes it as not holding" in output
    assert "the last that a gate accepted: gate.first rejected what came after (gate.first by facts/acc)" in output
    assert "skipped" in rounds("status", RECIPE, *stop, store=copied)


def test_behind_a_stop_a_round_without_a_gate_passes_the_policy_on(copied):
    stop = [
        "--set",
        "gate=null",
        "--set",
        "rounds.first.gate={rules: [{metric: facts/acc, at_least: 0.99}], on_reject: stop, too_few: reject}",
    ]
    output = run_mini(copied, *stop)
    found = stages(copied, *stop)
    assert "stopped at gate.first" in output and "(the policy after sft)" in output
    assert "that of sft" in (found["report"] / "report.html").read_text()
    assert tensors(found["export"] / "model" / "model.safetensors") == tensors(found["sft"] / "model" / "model.safetensors")


def test_a_rejected_round_leaves_the_next_to_start_from_the_policy_before_it(copied):
    reject = ["--set", "gate={rules: [{metric: facts/acc, at_least: 0.99}], too_few: reject}"]
    run_mini(copied, *reject)
    found = stages(copied, *reject)
    policy = json.loads((found["gate.first"] / "policy.json").read_text())
    assert policy == {"kind": "same", "start": found["sft"].name}
    assert (found["dpo.second"] / "model" / "model.safetensors").is_file()
    export, sft = (found[name] / "model" / "model.safetensors" for name in ("export", "sft"))
    assert tensors(export) == tensors(sft), "both rounds were rejected, so SFT is what is exported"
    told = json.loads(command_line.here("run", RECIPE, *reject, "--store", copied, "--json", "--exit-code", expect=3))
    assert told["rejected"] and told["exported"]["policy"] == "sft" and told["gates"]["gate.second"]["decision"] == "rejected"
    assert told["exported"]["why"].startswith("the last that a gate accepted: gate.first, gate.second rejected what came after")
    assert told["scores"]["sft"]["facts/acc"]["n"] == 24 and Path(told["report"]).is_file()


def test_lora_in_both_stages_exports_merged_weights(copied):
    lora = [
        "--set",
        "wandb=on",
        "--set",
        "sft.lora={r: 4}",
        "--set",
        "rounds.first.lora={r: 4}",
        "--set",
        "rounds.second.lora={r: 2}",
    ]
    run_mini(copied, *lora)
    found = stages(copied, *lora)
    assert (found["sft"] / "adapter" / "adapter_model.safetensors").is_file()
    assert not (found["dpo.first"] / "model").exists()
    for name in ("sft", "dpo.first", "evaluate.sft", "gate.second"):
        assert list(found[name].glob("wandb/offline-run-*/run-*.wandb")), "without a key a run is recorded offline"
    names = tensors(found["export"] / "model" / "model.safetensors").keys()
    assert names and not any("lora" in name for name in names)


def test_full_weights_train_after_an_adapter_was_merged(copied):
    lora = [
        "--set",
        "sft.lora={r: 4}",
        "--set",
        "rounds=[{name: first, data: [pairs_1], max_length: 256, global_batch_size: 4, learning_rate: 1.0e-4, reference: base}]",
    ]
    run_mini(copied, *lora)
    found = stages(copied, *lora)
    assert (found["sft"] / "adapter").is_dir() and (found["dpo.first"] / "model").is_dir()
    counts = json.loads((found["dpo.first"] / "done.json").read_text())["counts"]
    assert counts["trainable_parameters"] == counts["parameters"]


def test_a_result_that_is_gone_is_made_again_and_nothing_else(copied):
    found = stages(copied)
    before = finished(copied)
    digests = weights(found["dpo.first"])
    (found["dpo.first"] / "model" / "model.safetensors").unlink()
    assert "to do" in rounds("plan", RECIPE, store=copied)
    run_mini(copied)
    assert weights(found["dpo.first"]) == digests
    assert {name for name, at in finished(copied).items() if before[name] != at} == {found["dpo.first"].name}


def test_weights_with_a_flipped_bit_are_told_of_and_never_trained_on(copied):
    found = stages(copied)
    wanted, file = weights(found["sft"]), found["sft"] / "model" / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-100] ^= 1
    file.write_bytes(content)
    shutil.rmtree(found["dpo.first"])
    told = run_mini(copied, expect=1)
    assert f"sft ({found['sft'].name}) is damaged: model/model.safetensors" in told and "reference" not in told
    assert not found["dpo.first"].exists()
    rounds("clean", found["sft"].name, store=copied)
    run_mini(copied)
    assert weights(found["sft"]) == wanted and "are whole" in rounds("verify", RECIPE, store=copied)


def test_a_report_that_was_changed_is_not_handed_out(copied):
    page = stages(copied)["report"] / "report.html"
    page.write_text(page.read_text().replace("0.", "1.", 1))
    assert f"report ({page.parent.name}) is damaged: report.html" in rounds("report", RECIPE, store=copied, expect=1)


def test_a_base_model_that_moved_is_found_where_it_is_now(undisturbed, copied, tmp_path):
    old, new = tmp_path / "a b" / "model", tmp_path / "moved"
    shutil.copytree(stages(undisturbed)["export"] / "model", old)
    local = ["--set", "evaluate=null", "--set", "gate=null", "--set", "rounds=[]"]
    run_mini(copied, "--set", f"base={{kind: local, path: {old}}}", *local)
    old.rename(new)
    moved = ["--set", f"base={{kind: local, path: {new}}}", *local]
    assert "base" in finished_names(copied, *moved), "the same content elsewhere is the same base"
    run_mini(copied, *moved, "--set", "sft.learning_rate=2.0e-4")


def finished_names(store: Path, *more: str) -> set[str]:
    """Name the finished stages of the small recipe."""
    return {name for name, folder in stages(store, *more).items() if (folder / "done.json").is_file()}


def test_a_failing_stage_says_why_keeps_what_is_done_and_is_retried(copied):
    too_short = ["--set", "rounds.second.max_length=8"]
    output = run_mini(copied, *too_short, expect=1)
    assert "tokenize.second: no pair is left to train on" in output and "prompt_too_long" in output
    assert "failed" in rounds("status", RECIPE, *too_short, store=copied)
    assert "nothing was left to do" in run_mini(copied)


def test_what_this_machine_cannot_do_is_told_before_the_first_stage(tmp_path):
    cluster = tmp_path / "cluster.yaml"
    cluster.write_text(
        "stages: {dpo.second: {device: cpu, use_liger_kernel: true, attn_implementation: flash_attention_2}, "
        "dpo.first: {deepspeed: wrong.json}}\n"
    )
    (tmp_path / "wrong.json").write_text('{"zero_optimization": {"stage": 2, "reduce_buckt_size": 5}}')
    store = tmp_path / "store"
    output = " ".join(rounds("run", RECIPE, "--cluster", cluster, store=store, expect=1).split())
    assert "dpo.second: the cluster row says use_liger_kernel: true" in output
    assert "dpo.second: attn_implementation: flash_attention_2 needs a GPU" in output
    assert "dpo.first: the DeepSpeed file's zero_optimization: reduce_buckt_size: Extra inputs are not" in output
    assert not list(store.rglob("stage.json"))


def test_show_status_and_report(undisturbed):
    shown = rounds("show", "dpo.second", store=undisturbed)
    assert '"beta": 0.1' in shown and "model/model.safetensors" in shown and "policy.json" in shown
    assert "facts/acc" in rounds("show", "evaluate.sft", store=undisturbed)
    status = rounds("status", RECIPE, store=undisturbed)
    assert "to do" not in status and "accepted" in status
    assert Path(rounds("report", RECIPE, store=undisturbed).strip()).is_file()
    assert "no stage 'dpo.third'" in rounds("show", "dpo.third", store=undisturbed, expect=1)


def after(stage: str, found: dict[str, Path]) -> list[str]:
    """Name the stages that need the given one, directly or not."""
    needs: dict[str, set[str]] = {}
    by_folder = {folder.name: name for name, folder in found.items()}
    for name, folder in found.items():
        inputs = json.loads((folder / "stage.json").read_text())["inputs"].values()
        direct = {by_folder[entry["stage"]] for entry in inputs if "stage" in entry}
        needs[name] = direct.union(*(needs[parent] for parent in direct))
    return [name for name in found if stage in needs[name]]


def wait_for_step(folder: Path, past: int, process: subprocess.Popen) -> int:
    """Wait until a stage has trained beyond a step, and return its worker's process id."""

    def there() -> bool:
        assert process.poll() is None, process.communicate()[0]
        try:
            return json.loads((folder / "progress.json").read_text())["step"] > past
        except (FileNotFoundError, json.JSONDecodeError):
            return False

    wait_until(there, f"{folder.name} never came to step {past}")
    return json.loads((folder / "holder.json").read_text())["pid"]


def wait_until(condition, complaint: str) -> None:
    """Wait for a condition, or fail with a complaint."""
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline, complaint
        time.sleep(0.02)


def alive(pid: int) -> bool:
    """Tell whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def tensors(path: Path) -> dict[str, bytes]:
    """Read a safetensors file as bytes by name."""
    from safetensors.numpy import load_file

    return {name: tensor.tobytes() for name, tensor in load_file(path).items()}
