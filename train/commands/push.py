"""`rounds push`: the exported model to a hub, with its cards."""

from pathlib import Path
from typing import Annotated, Any

import typer

from rounds.data_prep.errors import UserError
from rounds.train.commands import options
from rounds.train.commands.options import ClusterFile, Overrides, RecipeFile, StoreRoot, plan_of, store_of, told
from rounds.train.engine import damage, store
from rounds.train.engine.digests import Memory
from rounds.train.plan import ablation


@told
def push(
    file: RecipeFile,
    to: Annotated[str, typer.Option("--to", metavar="ORG/NAME", help="Repository on the hub; made if it is not there")],
    public: Annotated[bool, typer.Option("--public", help="Make a new repository one that everybody can read")] = False,
    overrides: Overrides = None,
    cluster_file: ClusterFile = None,
    root: StoreRoot = None,
) -> None:
    """Upload a finished run's exported model, with its model card and data card, to the Hugging Face hub.

    Every byte is compared with what the run has written first. A new repository is private unless --public is given; whom your data
    and base allow to read it, you know. The token is that of `hf auth login`, or HF_TOKEN. What is there already is not sent again.

    rounds push recipes/quickstart.yaml --to my-lab/quickstart
    """
    root = store_of(root, cluster_file)
    if ablation.is_ablation(file):
        raise UserError(f"{file}: an ablation has a model for each variant; push the recipe of the one you want")
    stage = next(each for each in plan_of(file, overrides, root).stages if each.kind.exports)
    folder, go_on = store.folder(root, stage), options.go_on(file, overrides, cluster_file, root)
    if not store.done(folder):
        raise UserError(f"nothing is exported in {root} yet; `{go_on}` goes on")
    if damages := damage.full(folder, Memory(root), stage.name):
        raise damage.told(damages, go_on)
    model = folder / str(store.counts(folder)["folder"])
    size = sum(path.stat().st_size for path in model.iterdir())
    options.console.print(f"uploading {size / 1e9:,.2f} GB of {model}", highlight=False)
    print(_upload(model, to, public))


def _upload(folder: Path, to: str, public: bool) -> str:
    """Upload a folder and return the address of the repository. Raises `UserError` for whatever the hub says against it."""
    import httpx2
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, OfflineModeIsEnabled

    api: Any = HfApi()
    try:
        made = api.create_repo(to, private=not public, exist_ok=True, repo_type="model")
        api.upload_folder(repo_id=to, folder_path=str(folder), commit_message="Upload a model trained with Rounds")
    except HFValidationError as error:
        raise UserError(f"--to {to}: {' '.join(str(error).split())}; expected ORG/NAME") from None
    except OfflineModeIsEnabled:
        raise UserError("HF_HUB_OFFLINE is set, so nothing can be sent; unset it for this command") from None
    except (HfHubHTTPError, LocalTokenNotFoundError) as error:
        answer = getattr(error, "response", None)
        if answer is None or answer.status_code in (401, 403):
            raise UserError(
                f"the hub does not let this machine write to {to} ({_first_line(error)}): log in with `hf auth login`, or set HF_TOKEN, "
                "with a token that may write there"
            ) from None
        raise UserError(f"the hub refused {to}: {_first_line(error)}; the same command goes on") from None
    except (httpx2.HTTPError, OSError) as error:
        raise UserError(
            f"the hub at {api.endpoint} cannot be reached, or broke off: {_first_line(error)}; the same command goes on"
        ) from None
    return str(made)


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
