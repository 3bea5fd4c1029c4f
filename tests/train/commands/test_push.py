"""A finished model goes to a hub on 127.0.0.1 through the real client, whole and private; what cannot go there is one message."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.train import command_line
from tests.train.offline.fake_hub import FakeHub

MINI = Path(__file__).parents[1] / "mini.yaml"


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with FakeHub(tokens={"may-write"}) as hub:
        yield hub


def push(hub: FakeHub, store: Path, *options: str, token: str = "may-write", expect: int = 0, offline: str = "0") -> str:
    told = {"HF_ENDPOINT": hub.endpoint, "HF_TOKEN": token, "HF_HUB_OFFLINE": offline, "COLUMNS": "300", "HF_HUB_DISABLE_XET": "1"}
    return command_line.afresh("push", MINI, "--store", store, *options, expect=expect, environment=told)


def test_the_export_is_uploaded_whole_and_private_and_again_without_harm(hub: FakeHub, undisturbed: Path):
    said = push(hub, undisturbed, "--to", "lab/mini")
    assert said.splitlines()[-1] == f"{hub.endpoint}/lab/mini"
    sent = hub.repositories["models", "lab/mini"].files
    model = next(undisturbed.glob("export-*")) / "model"
    assert sent == {path.name: path.read_bytes() for path in model.iterdir()}
    assert hub.private == {"lab/mini": True}
    assert b"not been validated" in sent["README.md"] and "may-write" not in said
    push(hub, undisturbed, "--to", "lab/open", "--public")
    assert hub.private["lab/open"] is False


def test_what_cannot_be_sent_is_one_message(hub: FakeHub, undisturbed: Path, tmp_path: Path):
    said = push(hub, undisturbed, "--to", "lab/mini", token="another", expect=1)
    assert "does not let this machine write to lab/mini" in said and "hf auth login" in said and "another" not in said
    assert "expected ORG/NAME" in push(hub, undisturbed, "--to", "no name", expect=1)
    assert "HF_HUB_OFFLINE is set" in push(hub, undisturbed, "--to", "lab/mini", expect=1, offline="1")
    assert "nothing is exported" in push(hub, tmp_path / "empty", "--to", "lab/mini", expect=1)
    damaged = tmp_path / "damaged"
    shutil.copytree(undisturbed, damaged)
    weights = next(damaged.glob("export-*")) / "model" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    said = push(hub, damaged, "--to", "lab/mini", expect=1)
    assert "model/model.safetensors has another content than was written" in said and "rounds clean" in said
    hub.server.shutdown()
    hub.server.server_close()
    assert "cannot be reached" in push(hub, undisturbed, "--to", "lab/mini", expect=1)
    assert not hub.repositories
