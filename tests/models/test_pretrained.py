"""Pretrained weights: loaded, resampled, noted and refused; frozen parameters; the weights of a run."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.models import adapt_input_conv
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import Tensor, nn

from vit_dist import Config, train
from vit_dist.config.fields import ModelConfig
from vit_dist.errors import UserError
from vit_dist.inference.load import load_run_model, start_from
from vit_dist.models.build import build_model
from vit_dist.models.forward import parameter_count
from vit_dist.models.pretrained import classes_and_channels, freeze, load_pretrained, timm_weights
from vit_dist.models.weights import state_tensors
from vit_dist.optim.optimizers import build_optimizer
from vit_dist.training.result import Run

PATCHES = "patch_embed.proj.weight"
OURS: dict[str, Any] = {"patch_size": 4, "width": 24, "depth": 1, "heads": 2}
# What timm has for OURS at 16 pixels.
THEIRS: dict[str, Any] = {"patch_size": 4, "embed_dim": 24, "depth": 1, "num_heads": 2}
DIGITS: dict[str, Any] = {
    "model.width": 16,
    "model.depth": 1,
    "model.heads": 2,
    "batch.global_size": 48,
    "batch.micro_size": 48,
    "train.duration": "6 updates",
    "evaluate.every": "2 updates",
    "run.device": "cpu",
    "run.threads": 1,
    "log.report": False,
}


def ours(*, classes: int = 5, channels: int = 3, image_size: int = 16, seed: int = 0, **changes: Any) -> nn.Module:
    config = ModelConfig(**{**OURS, **changes})
    return build_model(config, classes=classes, channels=channels, image_size=image_size, seed=seed)


def theirs(
    name: str = "vit_tiny_patch16_224",
    *,
    classes: int = 5,
    channels: int = 3,
    image_size: int = 16,
    seed: int = 0,
    **args: Any,
) -> nn.Module:
    config = ModelConfig(name=f"timm/{name}", args={**THEIRS, **args})
    return build_model(config, classes=classes, channels=channels, image_size=image_size, seed=seed)


def saved(model: nn.Module, folder: Path) -> Path:
    """Write a file of the model's weights, with noise added so that those that start at 0 or 1 differ."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    path = folder / "weights.safetensors"
    save_file(state_tensors(model), path)
    return path


def differing(model: nn.Module, tensors: dict[str, Tensor]) -> set[str]:
    """Return the names of the tensors that differ or that only one of the two has."""
    actual = model.state_dict()
    both = actual.keys() & tensors.keys()
    return (actual.keys() ^ tensors.keys()) | {name for name in both if not torch.equal(actual[name], tensors[name])}


def refusal(model: nn.Module, path: Path) -> str:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(UserError) as error:
        load_pretrained(model, path, new_head=False)
    assert not differing(model, before)
    return str(error.value)


@pytest.mark.parametrize("written_by", [ours, theirs])
@pytest.mark.parametrize("read_by", [ours, theirs])
def test_weights_of_the_same_model_are_loaded_unchanged(written_by: Any, read_by: Any, tmp_path: Path) -> None:
    path = saved(written_by(seed=1), tmp_path)
    model = read_by()
    assert differing(model, load_file(path)) == model.state_dict().keys()
    assert load_pretrained(model, path, new_head=False) == []
    assert not differing(model, load_file(path))


@pytest.mark.parametrize(("name", "classifier"), [("", "head"), ("test_vit", "head"), ("convnext_atto", "head.fc")])
@pytest.mark.parametrize(("classes", "new_head"), [(3, False), (3, True), (5, True)])
def test_another_head_starts_anew(name: str, classifier: str, classes: int, new_head: bool, tmp_path: Path) -> None:
    def built(classes: int, seed: int) -> nn.Module:
        if not name:
            return ours(classes=classes, seed=seed)
        args = {"depths": (1, 1, 1, 1), "dims": (8, 8, 8, 8)} if name == "convnext_atto" else {"depth": 1}
        config = ModelConfig(name=f"timm/{name}", args=args)
        return build_model(config, classes=classes, channels=3, image_size=32, seed=seed)

    path = saved(built(5, seed=1), tmp_path)
    model, fresh = built(classes, seed=0), built(classes, seed=0)
    assert load_pretrained(model, path, new_head=new_head) == [f"{classifier}: starts anew"]
    of_head = {f"{classifier}.weight", f"{classifier}.bias"}
    assert differing(model, load_file(path)) == of_head
    assert differing(model, fresh.state_dict()) == model.state_dict().keys() - of_head


@pytest.mark.parametrize(("image_size", "patch_size"), [(24, 4), (8, 4), (32, 8), (8, 2), (18, 6)])
@pytest.mark.parametrize("kind", ["token", "mean", "registers", "deit3"])
def test_sizes_are_resampled_as_timm_does(kind: str, image_size: int, patch_size: int, tmp_path: Path) -> None:
    forms: dict[str, tuple[dict[str, Any], dict[str, Any] | None, int]] = {
        "token": ({}, {}, 1),
        "mean": ({"class_token": False, "global_pool": "avg"}, {"pool": "mean"}, 0),
        "registers": ({"reg_tokens": 2, "init_values": 0.1}, {"registers": 2, "layer_scale": 0.1}, 3),
        "deit3": ({}, None, 0),  # its positions are of the patches alone
    }
    args, changes, prefix = forms[kind]
    name = "deit3_small_patch16_224" if kind == "deit3" else "vit_tiny_patch16_224"
    path = saved(theirs(name, seed=1, **args), tmp_path)
    models = [theirs(name, image_size=image_size, **{**args, "patch_size": patch_size})]
    expected = checkpoint_filter_fn(load_file(path), models[0])
    if changes is not None:
        models.append(ours(image_size=image_size, **{**changes, "patch_size": patch_size}))
    side = image_size // patch_size
    lines = []
    if patch_size != 4:
        lines.append(f"{PATCHES}: resampled from [4, 4] to [{patch_size}, {patch_size}]")
    if side != 4:
        lines.append(f"pos_embed: resampled from {prefix + 16} to {prefix + side**2} tokens")
    for model in models:
        assert load_pretrained(model, path, new_head=False) == lines
        assert not differing(model, expected)


@pytest.mark.parametrize("built", [ours, theirs])
@pytest.mark.parametrize("channels", [1, 2, 4, 6])
def test_three_channels_are_converted_as_timm_does(built: Any, channels: int, tmp_path: Path) -> None:
    path = saved(built(seed=1), tmp_path)
    actual = load_file(path)
    model = built(channels=channels)
    note = f"patch_embed.proj.weight: 3 channels brought to {channels}"
    assert load_pretrained(model, path, new_head=False) == [note]
    assert not differing(model, {**actual, PATCHES: adapt_input_conv(channels, actual[PATCHES])})
    if channels == 1:
        torch.testing.assert_close(model.state_dict()[PATCHES], actual[PATCHES].sum(1, keepdim=True))
    larger = built(channels=channels, image_size=32, patch_size=8)
    assert load_pretrained(larger, path, new_head=False) == [
        note, "patch_embed.proj.weight: resampled from [4, 4] to [8, 8]",
    ]  # fmt: skip
    target = theirs(image_size=32, patch_size=8)
    expected = adapt_input_conv(channels, checkpoint_filter_fn(actual, target)[PATCHES])
    torch.testing.assert_close(larger.state_dict()[PATCHES], expected, rtol=1e-5, atol=1e-6)


def test_greyscale_weights_are_refused_for_colour_images(tmp_path: Path) -> None:
    path = saved(ours(channels=1), tmp_path)
    assert refusal(ours(), path) == (
        f"model.pretrained: {path} is of another model: "
        "patch_embed.proj.weight is [24, 1, 4, 4], the model's [24, 3, 4, 4]"
    )


def test_weights_of_another_width_are_refused_in_one_line(tmp_path: Path) -> None:
    path = saved(ours(), tmp_path)
    assert refusal(ours(width=32), path) == (
        f"model.pretrained: {path} is of another model: blocks.0.attn.proj.bias is [24], the model's [32]; "
        "blocks.0.attn.proj.weight is [24, 24], the model's [32, 32]; and 16 more"
    )
    # A single one is enough.
    tensors = load_file(path)
    save_file({**tensors, "norm.bias": torch.zeros(7)}, path)
    assert refusal(ours(), path) == (
        f"model.pretrained: {path} is of another model: norm.bias is [7], the model's [24]"
    )
    save_file({"a": torch.zeros(2), "b": torch.zeros(2)}, path)
    assert refusal(ours(), path) == f"model.pretrained: {path} is of another model: no name is the same"


def test_a_file_that_is_not_safetensors_gives_a_one_line_error(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    assert refusal(ours(), path) == f"model.pretrained: {path} does not exist"
    torch.save(ours().state_dict(), path)
    actual = refusal(ours(), path)
    assert actual.startswith(f"model.pretrained: {path} is not a safetensors file: ")
    assert "\n" not in actual


def test_a_pickle_is_refused_by_its_name_and_not_read(tmp_path: Path) -> None:
    for name in ("weights.pth", "weights.bin", "weights.ckpt"):
        torch.save(ours().state_dict(), tmp_path / name)
        with pytest.raises(UserError) as error:
            start_from(ours(), ModelConfig(pretrained=str(tmp_path / name)), [])
        line = f"model.pretrained: {tmp_path / name}: a pickle is never read: convert it to safetensors: "
        assert str(error.value).startswith(line)


def test_missing_and_unused_weights_are_listed(tmp_path: Path) -> None:
    path = saved(ours(position="sincos"), tmp_path)
    model, fresh = (ours(position="sincos", registers=3, layer_scale=0.1) for _ in range(2))
    assert load_pretrained(model, path, new_head=False) == [
        "not in the file, so they start anew: reg_token, blocks.0.ls1.gamma, blocks.0.ls2.gamma"
    ]
    new = {"reg_token", "blocks.0.ls1.gamma", "blocks.0.ls2.gamma"}
    assert differing(model, load_file(path)) == new
    assert differing(model, fresh.state_dict()) == model.state_dict().keys() - new
    # And back.
    path = saved(model, tmp_path)
    plain = ours(position="sincos")
    assert load_pretrained(plain, path, new_head=False) == [
        "in the file, not in the model: blocks.0.ls1.gamma, blocks.0.ls2.gamma, reg_token"
    ]
    assert differing(plain, load_file(path)) == new
    # More blocks, another pool: at most five names each.
    deeper = ours(position="sincos", depth=2, pool="mean", classes=4)
    assert load_pretrained(deeper, path, new_head=False) == [
        "head: starts anew",
        "not in the file, so they start anew: blocks.1.norm1.weight, blocks.1.norm1.bias, blocks.1.attn.qkv.weight, "
        "blocks.1.attn.qkv.bias, blocks.1.attn.proj.weight and 9 more",
        "in the file, not in the model: blocks.0.ls1.gamma, blocks.0.ls2.gamma, cls_token, norm.bias, norm.weight "
        "and 1 more",
    ]


@pytest.fixture(scope="module")
def ema_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Train a run that is best at its first evaluation, by the EMA: its rate is far too high for what follows."""
    return trained(tmp_path_factory.mktemp("ema") / "run", **{"train.ema": 0.5})


@pytest.fixture(scope="module")
def raw_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Train the same run without an EMA."""
    return trained(tmp_path_factory.mktemp("raw") / "run")


def trained(folder: Path, **changes: Any) -> Run:
    rate = {"optimizer.lr": 0.5, "optimizer.weight_decay": 0, "schedule.warmup": "4 updates"}
    return train(Config.load("digits", {**DIGITS, **rate, "run.dir": str(folder), **changes}))


@pytest.mark.parametrize("kind", ["ema_run", "raw_run"])
def test_pretrained_from_a_run_loads_its_best_weights(kind: str, request: pytest.FixtureRequest) -> None:
    run: Run = request.getfixturevalue(kind)
    assert run.best is not None
    assert run.best.update < 6
    name = {"ema_run": "ema.safetensors", "raw_run": "model.safetensors"}[kind]
    checkpoints = run.folder / "checkpoints"
    best = load_file(checkpoints / f"update_{run.best.update:08d}" / name)
    last = load_file(checkpoints / "update_00000006" / name)
    assert not torch.equal(best["head.bias"], last["head.bias"])
    actual = load_run_model(run.folder, "model.pretrained")
    for path, expected in ((run.folder, best), (checkpoints / "update_00000006", last)):
        model = build_model(digits_model(path), classes=10, channels=1, image_size=8, seed=7)
        assert start_from(model, digits_model(path), actual.classes) == []
        assert not differing(model, expected)
    assert not differing(actual.model, best)


def digits_model(pretrained: Path) -> ModelConfig:
    return Config.load("digits", {**DIGITS, "model.pretrained": str(pretrained)}).model


def test_other_classes_than_the_runs_make_a_new_head(raw_run: Run) -> None:
    config = digits_model(raw_run.folder)
    assert raw_run.best is not None
    best = load_file(raw_run.folder / "checkpoints" / f"update_{raw_run.best.update:08d}" / "model.safetensors")
    # As many, and named otherwise; and fewer.
    for classes in ([f"digit {i}" for i in range(10)], ["even", "odd"]):
        model = build_model(config, classes=len(classes), channels=1, image_size=8, seed=7)
        assert start_from(model, config, classes) == ["head: starts anew"]
        assert differing(model, best) == {"head.weight", "head.bias"}


def test_a_folder_without_a_checkpoint_is_refused(tmp_path: Path) -> None:
    config = digits_model(tmp_path)
    model = build_model(config, classes=10, channels=1, image_size=8, seed=0)
    with pytest.raises(UserError) as caught:
        start_from(model, config, ["a"] * 10)
    assert str(caught.value) == (
        f"model.pretrained: {tmp_path} is neither a run's folder with a checkpoint nor a checkpoint"
    )


@pytest.mark.parametrize(
    ("patterns", "frozen"),
    [
        (("pos_embed",), {"pos_embed"}),
        (("^patch_embed", "token$"), {"patch_embed.proj.weight", "patch_embed.proj.bias", "cls_token"}),
        ((r"^blocks\.0\.norm[12]\.weight",), {"blocks.0.norm1.weight", "blocks.0.norm2.weight"}),
        (("head", r"head\.bias"), {"head.weight", "head.bias"}),
    ],
)
def test_parameters_that_match_are_frozen(patterns: tuple[str, ...], frozen: set[str]) -> None:
    model = ours()
    assert freeze(model, ModelConfig(**OURS, freeze=patterns)) == [f"{len(frozen)} of 20 parameters are frozen"]
    assert {name for name, p in model.named_parameters() if not p.requires_grad} == frozen


def test_nothing_is_frozen_by_default() -> None:
    model = ours()
    assert freeze(model, ModelConfig(**OURS)) == []
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_pattern_that_matches_nothing_is_refused() -> None:
    with pytest.raises(UserError) as caught:
        freeze(ours(), ModelConfig(**OURS, freeze=("head", "encoder")))
    assert str(caught.value) == "model.freeze: encoder matches no parameter; names are as in head.bias"


@pytest.mark.parametrize("config", [{"freeze": ("",)}, {"freeze": ("head",), "linear_probe": True}])
def test_freezing_everything_is_refused(config: dict[str, Any]) -> None:
    with pytest.raises(UserError) as caught:
        freeze(ours(), ModelConfig(**OURS, **config))
    assert str(caught.value) == "model.freeze: leaves nothing to train"


def test_a_pattern_that_is_not_a_regular_expression_is_refused() -> None:
    with pytest.raises(UserError) as caught:
        Config.from_dict({"model": {"freeze": ["a", "(b"]}})
    assert str(caught.value).startswith("model.freeze: (b is not a regular expression: ")


@pytest.mark.parametrize(
    ("built", "head"),
    [
        (partial(ours, pre_logits=True), "head"),
        (theirs, "head"),
        (lambda: nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)), "1"),
    ],
)
def test_a_linear_probe_trains_only_the_head(built: Callable[[], nn.Module], head: str) -> None:
    model = built()
    config = Config.from_dict({"model": {"linear_probe": True}})
    names = [name for name, _ in model.named_parameters()]
    assert freeze(model, config.model) == [f"{len(names) - 2} of {len(names)} parameters are frozen"]
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {f"{head}.weight", f"{head}.bias"}
    optimizer = build_optimizer(config.optimizer, model, 1e-3)
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    assert held == {id(parameter) for name, parameter in model.named_parameters() if name in trained}
    assert parameter_count(model) == sum(p.numel() for p in model.parameters() if id(p) in held)


@pytest.mark.parametrize(
    ("changes", "trained_names"),
    [
        ({"model.linear_probe": True}, {"head.weight", "head.bias"}),
        ({"model.freeze": ["blocks", "^fc_norm", "embed"]}, {"head.weight", "head.bias"}),
        ({"model.freeze": ["blocks", "head"]},
         {"patch_embed.proj.weight", "patch_embed.proj.bias", "pos_embed", "fc_norm.weight", "fc_norm.bias"}),
    ],
)  # fmt: skip
def test_frozen_parameters_do_not_change_in_a_run(
    changes: dict[str, Any], trained_names: set[str], raw_run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start = load_run_model(raw_run.folder, "model.pretrained").model.state_dict()
    config = Config.load(
        "digits",
        {**DIGITS, **changes, "model.pretrained": str(raw_run.folder), "optimizer.weight_decay": 0.5, "train.ema": 0.9,
         "run.dir": str(tmp_path / "run")},
    )  # fmt: skip
    run = train(config)
    assert f"{len(start) - len(trained_names)} of {len(start)} parameters are frozen" in capsys.readouterr().out
    assert run.summary["parameters"] == sum(start[name].numel() for name in trained_names)
    last = run.folder / "checkpoints" / "update_00000006"
    for file in ("model.safetensors", "ema.safetensors"):
        actual = load_file(last / file)
        assert actual.keys() == start.keys()
        assert {name for name in actual if not torch.equal(actual[name], start[name])} == trained_names
    moments = {name.rpartition("/")[0] for name in load_file(last / "optimizer.safetensors")}
    assert moments == trained_names


@pytest.mark.parametrize("name", ["vit_tiny", "timm/nosuch", "timm/test_vit4", "tests.models:build"])
def test_timm_models_without_weights_are_refused(name: str) -> None:
    with pytest.raises(UserError) as caught:
        timm_weights(name)
    assert str(caught.value) == f"model.pretrained: timm has no safetensors weights for {name}: give a file"


def test_a_failed_download_of_weights_gives_a_one_line_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The variables of the environment are read when huggingface_hub is imported, which timm did.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    config = ModelConfig(name="timm/test_vit", pretrained="timm", args={"depth": 1})
    model = build_model(config, classes=3, channels=3, image_size=32, seed=0)
    with pytest.raises(UserError) as caught:
        start_from(model, config, ["a", "b", "c"])
    actual = str(caught.value)
    assert actual.startswith("model.pretrained: timm/test_vit.r160_in1k cannot be downloaded (")
    assert actual.endswith(
        "): on a machine with internet, hf download timm/test_vit.r160_in1k model.safetensors --local-dir . fetches "
        "it; here, --model.pretrained model.safetensors takes that file"
    )
    assert "\n" not in actual
    assert timm.get_pretrained_cfg("test_vit").hf_hub_id == "timm/test_vit.r160_in1k"


# What a file says of itself


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("classes", [2, 7])
@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("vit_tiny", None),
        ("timm/vit_tiny_patch16_224", THEIRS),
        ("timm/vit_tiny_patch16_224.augreg_in21k", THEIRS),
        ("timm/deit_tiny_distilled_patch16_224", THEIRS),
        ("timm/convnext_atto", {"depths": (1, 1, 1, 1), "dims": (8, 8, 8, 8)}),
        ("timm/test_resnet", {}),
    ],
)
def test_classes_and_channels_are_read_from_a_weights_file(
    name: str, args: dict[str, Any] | None, classes: int, channels: int, tmp_path: Path
) -> None:
    config = ModelConfig(name=name, args=args) if args is not None else ModelConfig(**OURS)
    model = build_model(config, classes=classes, channels=channels, image_size=32, seed=0, trained=False)
    assert classes_and_channels(name, saved(model, tmp_path)) == (classes, channels)


def test_a_file_of_another_kind_of_model_is_refused(tmp_path: Path) -> None:
    path = saved(ours(), tmp_path)
    with pytest.raises(UserError) as caught:
        classes_and_channels("timm/resnet18", path)
    assert str(caught.value) == f"{path}: has no fc.weight, so it is not a timm/resnet18: set model.name to its model"
    save_file({"head.weight": torch.zeros(3, 4)}, path)
    with pytest.raises(UserError) as caught:
        classes_and_channels("vit_tiny", path)
    assert str(caught.value) == (
        f"{path}: has no patch_embed.proj.weight, so it is not a vit_tiny: set model.name to its model"
    )


def test_a_file_that_is_missing_or_not_safetensors_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    for content, problem in ((None, "does not exist"), (b"no weights", "is not a safetensors file: ")):
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(UserError) as caught:
            classes_and_channels("vit_tiny", path)
        assert f"{path} {problem}" in str(caught.value)
        assert "\n" not in str(caught.value)
