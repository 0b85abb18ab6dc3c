"""MTP's blocks in a saved folder: layers after the last one, with copies of embedding and head, and back."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

import bestiary


@pytest.fixture
def saved(tiny, build, tmp_path):
    """A model with MTP, and the folder that it was saved to."""

    def make(layers, depth, **model):
        objective = {"next-token": {"use": "next-token"}, "mtp": {"use": "mtp", "depth": depth}}
        data = tiny(layers=layers, model=model, objective=objective, precision={"use": "fp32"})
        made = build(data, dtype=torch.float32)
        bestiary.save(made, tmp_path / "m")
        return made, tmp_path / "m"

    return make


@pytest.mark.parametrize("layers", [1, 2, 5])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_every_depth_comes_back_from_the_layer_after_the_last(saved, layers, depth):
    model, folder = saved(layers, depth)
    tensors = load_file(folder / "model.safetensors")
    assert {int(name.split(".")[2]) for name in tensors if name.startswith("model.layers.")} == set(range(layers + depth))
    for j in range(depth):
        head = f"model.layers.{layers + j}."
        assert torch.equal(tensors[f"{head}eh_proj.weight"], model.objectives["mtp"].layers[j].eh_proj.weight)
        assert torch.equal(tensors[f"{head}embed_tokens.weight"], tensors["model.embed_tokens.weight"])
        assert torch.equal(tensors[f"{head}shared_head.head.weight"], tensors["lm_head.weight"])
    again, ids = bestiary.load(folder), torch.randint(31, (2, 9))
    assert again.load_report is not None and len(again.load_report.duplicates) == 2 * depth
    for one, other in zip([again(ids), *again.mtp_logits(ids)], [model(ids), *model.mtp_logits(ids)], strict=True):
        assert torch.equal(one, other)


def test_a_loaded_model_drafts_at_once(saved):
    model, folder = saved(2, 2)
    prompt = torch.randint(31, (1, 4))
    ours = bestiary.load(folder).generate(prompt, max_new_tokens=6, speculative="mtp", draft_tokens=2)
    assert torch.equal(ours, model.generate(prompt, max_new_tokens=6))


def test_under_a_tied_embedding_both_copies_are_the_embedding(saved):
    model, folder = saved(2, 1, tie_word_embeddings=True)
    tensors = load_file(folder / "model.safetensors")
    for copy in ("embed_tokens", "shared_head.head"):
        assert torch.equal(tensors[f"model.layers.2.{copy}.weight"], model.model.embed_tokens.weight)
    ids = torch.randint(31, (1, 6))
    assert torch.equal(bestiary.load(folder).mtp_logits(ids)[0], model.mtp_logits(ids)[0])


def test_a_copy_never_takes_the_originals_place(saved):
    model, folder = saved(2, 1)
    file = folder / "model.safetensors"
    tensors = load_file(file)
    tensors["model.layers.2.embed_tokens.weight"] = tensors["model.layers.2.embed_tokens.weight"].neg()
    save_file(tensors, file)
    again, ids = bestiary.load(folder), torch.randint(31, (1, 6))
    assert torch.equal(again.mtp_logits(ids)[0], model.mtp_logits(ids)[0])


def test_one_depth_less_is_an_error_that_names_it(saved):
    _, folder = saved(2, 2)
    file = folder / "model.safetensors"
    save_file({name: tensor for name, tensor in load_file(file).items() if ".layers.3." not in name}, file)
    with pytest.raises(bestiary.BestiaryError, match=r"model\.layers\.3\.eh_proj"):
        bestiary.load(folder)
