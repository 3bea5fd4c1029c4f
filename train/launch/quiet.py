"""What the stages' libraries read from the environment when they are imported, the same whichever way a stage is started."""

QUIET = {
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",  # spinning threads made torch 8 times slower on a busy machine
    "TOKENIZERS_PARALLELISM": "true",
    "TQDM_DISABLE": "1",  # progress goes to progress.json; bars would only fill the log
}
