"""The process that holds a vLLM engine. Runs under another interpreter: the standard library and vLLM, and nothing of this project.

    engine_python -I vllm_worker.py FOLDER

FOLDER/engine.json names the model. Each FOLDER/asked-N.json is answered by FOLDER/answered-N.json. Ends when its parent does.
"""

import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

_POLL_SECONDS = 0.05


def main(folder: Path) -> None:
    """Answer until the parent is gone."""
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
    engine = json.loads((folder / "engine.json").read_text(encoding="utf-8"))
    # In this process: a core of its own would outlive a kill of this one.
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    from vllm import LLM  # type: ignore[import-not-found]

    llm = LLM(
        model=engine["model"],
        skip_tokenizer_init=True,
        dtype=engine["dtype"],
        max_model_len=engine["max_model_len"],
        max_num_seqs=engine["max_num_seqs"],
        enforce_eager=engine["enforce_eager"],
        generation_config="vllm",  # not the model's own: what the recipe says is all
        logprobs_mode="raw_logprobs",  # before temperature and top_p
        trust_remote_code=False,
        seed=0,
    )
    number = 0
    while True:
        asked = folder / f"asked-{number:06}.json"
        if not asked.is_file():
            time.sleep(_POLL_SECONDS)
            continue
        given = json.loads(asked.read_text(encoding="utf-8"))
        answer = folder / f"answered-{number:06}.json"
        partial = answer.with_name(f"{answer.name}.partial")
        partial.write_text(json.dumps(_written(llm, given, engine["ends"])), encoding="utf-8")
        partial.replace(answer)
        number += 1


def _written(llm: Any, given: dict[str, Any], ends: list[int]) -> list[dict[str, Any]]:
    """Write one answer a request: with n > 1 the second answer to one prompt would share its stream with another seed's first."""
    from vllm import SamplingParams  # type: ignore[import-not-found]

    params = [
        SamplingParams(
            n=1,
            temperature=given["temperature"],
            top_p=given["top_p"],
            max_tokens=given["max_new_tokens"],
            seed=ask["seed"],
            logprobs=0,  # of the drawn token alone
            stop_token_ids=ends,
            detokenize=False,
        )
        for ask in given["asks"]
    ]
    prompts = [{"prompt_token_ids": ask["prompt_ids"]} for ask in given["asks"]]
    found = []
    for request in llm.generate(prompts, params, use_tqdm=False):
        (out,) = request.outputs
        ids = list(out.token_ids)
        total = sum(step[token].logprob for step, token in zip(out.logprobs, ids, strict=True))
        ended = bool(ids) and ids[-1] in ends
        found.append({"token_ids": ids[:-1] if ended else ids, "ended": ended, "logprob": total})
    return found


def _end_with_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_POLL_SECONDS * 10)
    os._exit(1)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
