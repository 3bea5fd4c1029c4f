"""Weights & Biases watches a stage and never ends it."""

import logging
from pathlib import Path

import pytest

from rounds.train.engine import tracking
from rounds.train.engine.records import Spec

SETTINGS: dict[str, str | None] = {"project": "rounds", "entity": None, "group": "run", "mode": "online"}
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


@pytest.mark.parametrize(
    ("mode", "key", "environment", "wanted", "says"),
    [
        ("online", "a" * 40, None, "online", "sent to Weights & Biases, project team/mine, while it trains"),
        ("online", None, None, "offline", "as no key was found; nothing is sent before"),
        ("online", "a" * 40, "offline", "offline", "as WANDB_MODE says offline; nothing is sent before"),
        ("online", "a" * 40, "disabled", "disabled", "as WANDB_MODE says disabled"),
        ("offline", "a" * 40, None, "offline", "beside each training stage; nothing is sent before"),
        ("offline", "a" * 40, "online", "offline", "nothing is sent before"),
        (None, "a" * 40, None, "offline", "nothing is sent before"),
    ],
)
def test_what_is_sent_is_what_the_recipe_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str | None, key: str | None, environment: str | None, wanted: str, says: str
):
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    for name, value in (("WANDB_API_KEY", key), ("WANDB_MODE", environment)):
        monkeypatch.delenv(name, raising=False)
        if value:
            monkeypatch.setenv(name, value)
    assert tracking._mode(mode) == wanted
    assert says in tracking.told({**SETTINGS, "project": "mine", "entity": "team", "mode": mode}, tmp_path)
    assert tracking.told(None, tmp_path) == f"recorded: in the store {tmp_path} alone"
