"""The fields of the text tower, and what does not go with images and captions: one line each."""

from __future__ import annotations

from typing import Any

import pytest

from vit_dist.config.config import Config
from vit_dist.errors import UserError

ALONE = "has no effect without loss.name clip or siglip: set that too, or leave it out"


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"text": {"width": 64}}, f"text.width: {ALONE}"),
        ({"text": {"pool": "mean"}, "loss": {"name": "bce"}}, f"text.pool: {ALONE}"),
        ({"loss": {"duplicates": "mask"}}, f"loss.duplicates: {ALONE}"),
        ({"text": {"name": "text_bas"}}, "text.name: no text tower text_bas (did you mean text_base?)"),
        ({"text": {"width": 60}}, "text.width: 60 is not divisible by 8 heads: set text.heads"),
        ({"text": {"heads": 5}}, "text.width: 512 is not divisible by 5 heads: set text.heads"),
        ({"text": {"prompts": []}}, 'text.prompts: must hold a template at least, as ["a photo of a {}."]'),
        ({"text": {"prompts": ["a cat"]}}, "text.prompts: 'a cat' has no {} where the name of the class goes"),
        ({"text": {"context_length": 1}}, "text.context_length: must be 2 or more, not 1"),
        ({"text": {"drop_path": 1}}, "text.drop_path: must be at least 0 and below 1, not 1"),
        ({"text": {"pool": "token"}}, "text.pool: must be end or mean, not 'token'"),
        (
            {"augment": {"mixup": 0.2}},
            "augment.mixup: mixes images whose captions cannot be mixed: set it to 0 with loss.name clip",
        ),
        (
            {"augment": {"cutmix": 1}},
            "augment.cutmix: mixes images whose captions cannot be mixed: set it to 0 with loss.name clip",
        ),
        (
            {"augment": {"repeats": 2}},
            "augment.repeats: copies of an image would be each other's negatives with loss.name clip: set it to 1",
        ),
        ({"loss": {"teacher": "runs/x"}}, "loss.teacher: there is no distillation with loss.name clip: leave it out"),
        (
            {"loss": {"label_smoothing": 0.1}},
            "loss.label_smoothing: loss.name clip has no labels to smooth: set it to 0",
        ),
        (
            {"model": {"linear_probe": True}},
            "model.linear_probe: is for classifiers: with loss.name clip, model.freeze [^image\\.] trains the text "
            "tower alone",
        ),
        (
            {"evaluate": {"metric": "top5"}},
            "evaluate.metric: no metric top5 (did you mean top1?)",
        ),
    ],
)
def test_what_does_not_go_together_is_refused_in_one_line(values: dict[str, Any], text: str) -> None:
    loss = {} if ALONE in text else {"name": "clip"}
    with pytest.raises(UserError) as error:
        Config.from_dict({**values, "loss": {**loss, **values.get("loss", {})}})
    assert str(error.value) == text


@pytest.mark.parametrize("loss", ["clip", "siglip"])
def test_a_contrastive_run_is_one_by_its_loss(loss: str) -> None:
    assert Config.from_dict({"loss": {"name": loss}}).contrastive
    assert not Config().contrastive


def test_dropout_in_the_text_tower_makes_the_micro_batch_part_of_the_run() -> None:
    def name(micro_size: int, dropout: float) -> str:
        values = {"loss": {"name": "clip"}, "text": {"dropout": dropout}, "batch": {"micro_size": micro_size}}
        return Config.from_dict(values).identity()

    assert name(64, 0) == name(128, 0)
    assert name(64, 0.1) != name(128, 0.1)
