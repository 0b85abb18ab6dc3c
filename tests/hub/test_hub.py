"""The Hub of the tests stands in for the real one only if the unmodified client cannot tell them apart."""

from __future__ import annotations

from pathlib import Path

from tests.hub.faults import Cut, Flipped
from tests.hub.hub import Hub

CLIENT = """
from huggingface_hub import CommitOperationAdd, HfApi, snapshot_download
from pathlib import Path
api = HfApi()
"""


def test_upload_and_download_of_a_folder(hub: Hub) -> None:
    source = hub.folder / "source"
    source.mkdir()
    (source / "config.json").write_text("{}")
    (source / "model.safetensors").write_bytes(bytes(range(256)) * 1000)
    printed = hub.python(
        CLIENT
        + """
api.create_repo("me/model", private=True)
api.upload_folder(repo_id="me/model", folder_path="source")
api.upload_folder(repo_id="me/model", folder_path="source")
folder = Path(snapshot_download("me/model"))
print((folder / "model.safetensors").read_bytes() == Path("source/model.safetensors").read_bytes(), folder.name)
print([m.id for m in api.list_models(search="mod")])
print(api.verify_repo_checksums("me/model").checked_count)
"""
    )
    assert printed.splitlines() == [f"True {hub.head('me/model')}", "['me/model']", "2"]
    assert len(hub.store.repos["me/model"].commits) == 2, "an unchanged folder makes no commit"
    assert hub.store.repos["me/model"].private


def test_one_commit_after_preuploads_guarded_by_its_parent(hub: Hub) -> None:
    hub.put("me/model", {"config.json": b"{}"})
    printed = hub.python(
        CLIENT
        + """
from huggingface_hub.errors import HfHubHTTPError
head = api.model_info("me/model").sha
add = CommitOperationAdd("a.safetensors", b"x" * 70000)
api.preupload_lfs_files("me/model", [add])
made = api.create_commit("me/model", [add], commit_message="one", parent_commit=head)
print(made.oid)
api.create_tag("me/model", tag="v1")
api.create_branch("me/model", branch="work")
print(api.create_commit("me/model", [CommitOperationAdd("b.json", b"[]")], commit_message="two", create_pr=True).pr_url)
try:
    api.create_commit("me/model", [CommitOperationAdd("b.json", b"[]")], commit_message="late", parent_commit=head)
except HfHubHTTPError as error:
    print(error.response.status_code)
print(api.resolve_revision("me/model", revision="v1").resolved)
"""
    )
    head = hub.head("me/model")
    assert printed.splitlines() == [head, f"{hub.endpoint}/me/model/discussions/1", "412", head]
    assert "b.json" not in hub.files("me/model") and "b.json" in hub.files("me/model", "refs/pr/1")


def test_faults_reach_the_client(hub: Hub) -> None:
    content = bytes(range(256)) * 400
    hub.put("me/model", {"model.safetensors": content, "config.json": b"{}"})
    hub.fault("GET", "resolve/.*safetensors", Cut(1000))
    printed = hub.python(
        CLIENT
        + """
print((Path(snapshot_download("me/model")) / "model.safetensors").stat().st_size)
"""
    )
    assert int(printed) == len(content)
    assert len(hub.asked("GET", "resolve")) >= 2
    hub.fault("GET", "resolve/.*safetensors", Flipped())
    printed = hub.python(
        CLIENT
        + """
path = Path(snapshot_download("me/model", local_dir="flipped")) / "model.safetensors"
print(path.read_bytes()[0], path.stat().st_size)
""",
        env={"HF_HOME": str(hub.folder / "other")},
    )
    assert printed.split() == ["1", str(len(content))]


def test_private_repositories_are_not_there_for_strangers(hub: Hub) -> None:
    hub.put("me/secret", {"config.json": b"{}"}, private=True)
    printed = hub.python(
        CLIENT
        + """
from huggingface_hub.errors import RepositoryNotFoundError
try:
    api.model_info("me/secret")
except RepositoryNotFoundError as error:
    print(type(error).__name__)
""",
        env={"HF_TOKEN": ""},
    )
    assert printed.strip() == "RepositoryNotFoundError"


def test_hub_writes_only_below_its_folder(hub: Hub, tmp_path: Path) -> None:
    hub.put("me/model", {"config.json": b"{}"})
    assert {path.name for path in tmp_path.iterdir()} == {"hub"}
