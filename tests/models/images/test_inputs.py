"""Log-probs of pairs with images, compared with the model's own forward of each sequence alone."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from raydpo.blocks.schema import TokenizedPair
from raydpo.errors import ModelError
from raydpo.models.attention.choice import IMPLEMENTATIONS, VISION_SHARING_MODEL_TYPES, sharing_obstacle
from raydpo.models.attention.kernels import register_attention
from raydpo.models.classes import by_part
from raydpo.models.completion_logps import CompletionLogps
from raydpo.models.vision import PROJECTOR, TEXT, TOWER, part_of_each
from tests.models.image_rows import Images, image, image_pairs, own_logits
from tests.models.packed import packed
from tests.models.vision_models import IMAGE, vision_model

LAYOUTS = [(family, shares) for family in sorted(VISION_SHARING_MODEL_TYPES) for shares in (True, False)]
LAYOUTS += [("glm4v", False), ("qwen3_5", False)]


def policy_of(model: Any, family: str, *, shares: bool) -> CompletionLogps:
    """Return the model as a worker has it."""
    if shares:
        assert sharing_obstacle(model.config) is None
        register_attention()
        model.set_attn_implementation(by_part(model.config, IMPLEMENTATIONS["sdpa"]))
    return CompletionLogps(model, shares=shares, images=Images(family)).eval()


class Encodings:
    """Counts the calls of a vision tower and the numbers of values of pixels that it is given."""

    def __init__(self, model: Any) -> None:
        self.calls = 0
        self.values = 0
        model.get_encoder("image").register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, module: Any, arguments: tuple[Any, ...], options: Mapping[str, Any]) -> None:
        pixels = options["pixel_values"] if "pixel_values" in options else arguments[0]
        self.calls += 1
        self.values += int((pixels != 0).sum())  # what fills images up is 0


def values_of(family: str, *names: str) -> int:
    return sum(int((image(family, name)[0]["pixel_values"] != 0).sum()) for name in names)


@pytest.mark.parametrize(("family", "shares"), LAYOUTS)
def test_values_and_gradients_are_those_of_the_own_forward_and_each_image_is_encoded_once(
    family: str, shares: bool
) -> None:
    model = vision_model(family)
    batch = packed(image_pairs(family), multiple=16)
    logits, targets = own_logits(model, family, image_pairs(family), batch)
    expected = logits.log_softmax(dim=-1).gather(1, targets[:, None])[:, 0]
    weights = torch.randn(len(expected))
    (expected * weights).sum().backward()
    gradients = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
    model.zero_grad()

    encodings = Encodings(model)
    found = policy_of(model, family, shares=shares)(batch)[0][torch.from_numpy(batch.target_index)]
    (found * weights).sum().backward()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    largest = max(float(gradient.norm()) for gradient in gradients.values())
    for name, gradient in gradients.items():
        weight = model.get_parameter(name)
        assert weight.grad is not None
        assert (weight.grad - gradient).norm() <= 1e-5 * (gradient.norm() + 1e-2 * largest), name
    parts = part_of_each(model)
    assert {parts[name] for name, gradient in gradients.items() if gradient.any()} == {TOWER, PROJECTOR, TEXT}
    assert (encodings.calls, encodings.values) == (1, values_of(family, "a", "b", "c"))


@pytest.mark.parametrize("shares", [True, False])
@pytest.mark.parametrize("family", ["gemma3", "llava", "qwen2_5_vl", "smolvlm"])
def test_a_spare_image_runs_the_tower_and_changes_nothing(family: str, shares: bool) -> None:
    """Check a micro-batch without images beside other ranks' with images: its forward makes the same collectives."""
    members = [pair for pair in image_pairs(family) if not pair.images]
    model = vision_model(family)
    batch = packed(members)
    encodings = Encodings(model)
    policy = policy_of(model, family, shares=shares)
    expected = policy(batch)[0]
    assert encodings.calls == 0
    found = policy(replace(batch, spare_image="b"))[0]
    assert (encodings.calls, encodings.values) == (1, values_of(family, "b"))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    found.sum().backward()
    parts = part_of_each(model)
    gradients = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    assert {parts[name] for name in gradients} == {TOWER, PROJECTOR, TEXT}
    assert not any(gradient.any() for name, gradient in gradients.items() if parts[name] != TEXT)
    assert policy(replace(packed([]), spare_image="b"))[0].shape == (0,)
    assert encodings.calls == 2


def test_more_tokens_than_features_are_refused_with_their_numbers() -> None:
    pair = image_pairs("llava")[0]
    batch = packed([replace(pair, prompt_ids=pair.prompt_ids[pair.prompt_ids != IMAGE][:2])])
    with pytest.raises(ModelError, match="16 features of images whose prompts have 0 image tokens"):
        policy_of(vision_model("llava"), "llava", shares=True)(batch)


def test_an_image_token_without_an_image_is_refused() -> None:
    pair = image_pairs("llava")[0]
    answer = TokenizedPair("answer", pair.prompt_ids, np.array([5, IMAGE]), pair.rejected_ids, images=pair.images)
    with pytest.raises(ModelError, match="1 tokens of pairs answer are the image token 60"):
        policy_of(vision_model("llava"), "llava", shares=True)(packed([answer]))


def test_a_model_that_takes_no_images_among_its_tokens_is_refused() -> None:
    batch = packed(image_pairs("mllama"))
    with pytest.raises(ModelError, match=r"MllamaForConditionalGeneration .* choose another model"):
        policy_of(vision_model("mllama"), "mllama", shares=False)(batch)
    model = vision_model("llava")
    with pytest.raises(ModelError, match="takes no images"):
        CompletionLogps(model, shares=False)(packed(image_pairs("llava")))
