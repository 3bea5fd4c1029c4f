"""Weights & Biases watches a stage and never ends it."""

import logging
from pathlib import Path

import pytest

from rounds.train.engine import tracking
from rounds.train.engine.records import Spec

SETTINGS: dict[str, str | None] = {"project": "rounds", "entity": None, "group": "run"}
SPEC = Spec(name="sft", function="sft", version=2, params={}, inputs={})


@pytest.mark.parametrize("key", ["too short", "a" * 40], ids=["refused key", "unreachable"])
def test_what_keeps_wandb_from_its_server_makes_a_record_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, key: str
):
    """As on a node without internet; left alone it takes wandb a minute and a half to find out."""
    told = {"API_KEY": key, "MODE": "online", "BASE_URL": "http://127.0.0.1:9", "INIT_TIMEOUT": "2"}
    for name, value in told.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    with caplog.at_level(logging.WARNING), tracking.job(SETTINGS, SPEC, tmp_path):
        tracking.log({"loss": 1.0}, 1)
    assert "Recorded offline" in caplog.text
    assert list(tmp_path.glob("wandb/offline-run-*/run-*.wandb"))
