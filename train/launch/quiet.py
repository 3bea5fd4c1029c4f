"""What the stages' libraries read from the environment when they are imported, the same whichever way a stage is started."""

NO_TELEMETRY = {
    "DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",  # TRL tells the hub of every trainer that is made
    "HF_UPDATE_DOWNLOAD_COUNTS": "0",  # datasets asks a storage host for each set that it reads, local ones too
    "WANDB_ERROR_REPORTING": "false",
}
"""Nothing connects but to what the recipe needs."""

QUIET = {
    **NO_TELEMETRY,
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",  # spinning threads made torch 8 times slower on a busy machine
    "TOKENIZERS_PARALLELISM": "true",
    "TQDM_DISABLE": "1",  # progress goes to progress.json; bars would only fill the log
}
