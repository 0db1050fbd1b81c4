"""`predict` and `evaluate` of a run on captions: texts and images are ranked, embeddings kept, figures are equal."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

from tests.cli.commands import command
from tests.runs import digits_as_files, train_captions_run, train_digits_run
from vit_dist import DualEncoder, load
from vit_dist.files import read_json
from vit_dist.inference.load import load_model
from vit_dist.run_folder.metrics import read_metrics


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_captions_run(tmp_path_factory)


@pytest.fixture(scope="module")
def model(run: Path) -> DualEncoder:
    model = load(run, device="cpu")
    assert isinstance(model, DualEncoder)
    return model


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return digits_as_files(tmp_path_factory)


@pytest.fixture(autouse=True)
def working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _rows(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def _by_hand(run: Path, texts: list[str], images: list[Path]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the embeddings of images and texts by the module alone."""
    from PIL import Image

    trained = load_model(str(run))
    towers: Any = trained.model.eval()
    mean, std = trained.preprocessing.mean[0], trained.preprocessing.std[0]
    pixels = torch.stack([torch.from_numpy(np.asarray(Image.open(path)).copy())[None] for path in images])
    rows = torch.zeros(len(texts), 40, dtype=torch.int64)
    for row, text in zip(rows, texts, strict=True):
        tokens = torch.tensor([257, *(byte + 1 for byte in text.encode()), 258])
        row[: len(tokens)] = tokens
    with torch.no_grad():
        return towers.encode_image((pixels / 255 - mean) / std), towers.encode_text(rows)


def test_labels_are_ranked_for_each_image(capsys: pytest.CaptureFixture[str], run: Path, files: Path) -> None:
    labels = ["a handwritten zero", "a handwritten one", "a bold two, upright"]
    images = sorted((files / "0").iterdir())[:3] + sorted((files / "1").iterdir())[:2]
    words = ["predict", run, *images, "--labels", ", ".join(labels[:2]), "--format", "jsonl"]
    found = _rows(command(capsys, *words).out)
    of_images, of_texts = _by_hand(run, labels, images)
    scale = load_model(str(run)).model.logit_scale.exp().item()  # type: ignore[union-attr,operator]
    expected = (scale * of_images @ of_texts[:2].T).softmax(1)
    for row, probabilities, image in zip(found, expected, images, strict=True):
        assert row["image"] == str(image)
        assert {each["class"]: each["probability"] for each in row["top"]} == pytest.approx(
            dict(zip(labels, probabilities.tolist(), strict=False)), abs=1e-5
        )
        assert row["top"][0]["probability"] >= row["top"][1]["probability"]
    lines = Path("labels.txt")
    lines.write_text("\n".join(labels) + "\n\n")
    from_file = _rows(command(capsys, "predict", run, images[0], "--labels", lines, "--format", "jsonl").out)
    assert {each["class"] for each in from_file[0]["top"]} == {*labels}  # a comma in a text of its own


def test_images_are_ranked_for_a_text(capsys: pytest.CaptureFixture[str], run: Path, files: Path) -> None:
    (folder := Path("some")).mkdir()
    for number in (0, 1, 2):
        for path in sorted((files / str(number)).iterdir())[:4]:
            (folder / f"{number}_{path.name}").write_bytes(path.read_bytes())
    images = sorted(folder.iterdir())
    (folder / "z.png").write_bytes(b"no image")
    of_images, of_texts = _by_hand(run, ["a handwritten one"], images)
    cosines = (of_images @ of_texts[0]).tolist()
    order = sorted(range(len(images)), key=lambda number: -cosines[number])[:5]
    words = ["predict", run, "--text", "a handwritten one", "--folder", folder, "--top", "5"]
    result = command(capsys, *words, "--format", "jsonl", "--png", "found.png")
    *found, bad = _rows(result.out)
    assert [row["image"] for row in found] == [str(images[number]) for number in order]
    assert [row["cosine"] for row in found] == pytest.approx([cosines[number] for number in order], abs=1e-5)
    assert (result.code, bad["image"]) == (1, str(folder / "z.png"))
    assert "cannot be decoded" in bad["error"]
    assert Path("found.png").read_bytes()[:4] == b"\x89PNG"
    assert command(capsys, *words, "--out", "found.csv").code == 1
    with Path("found.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [row["image"] for row in table] == [row["image"] for row in found] + [str(folder / "z.png")]
    assert table[0]["cosine"] == f"{cosines[order[0]]:.6f}"
    lines = command(capsys, *words).out.splitlines()
    assert lines[0] == "cosine  image, most like: a handwritten one"
    assert lines[1].split() == [f"{cosines[order[0]]:.3f}", str(images[order[0]])]
    assert len(lines) == 7


@pytest.mark.parametrize("ending", ["safetensors", "npz"])
def test_embeddings_are_kept(capsys: pytest.CaptureFixture[str], run: Path, files: Path, ending: str) -> None:
    images = sorted((files / "3").iterdir())[:4]
    out, labels = Path(f"kept.{ending}"), ["a handwritten three", "a handwritten four"]
    result = command(capsys, "predict", run, *images, "--embeddings", out, "--labels", ",".join(labels))
    assert result.code == 0
    assert len(result.out.splitlines()) == 5  # the labels are ranked too
    if ending == "npz":
        with np.load(out) as kept:
            arrays = {name: kept[name] for name in kept.files}
        names, texts = arrays["image_names"].tolist(), arrays["text_names"].tolist()
        about = json.loads(str(arrays["about"]))
    else:
        with safe_open(out, "np") as file:
            arrays = {name: file.get_tensor(name) for name in ("images", "texts")}
            about = json.loads(file.metadata()["about"])
        names, texts = about["images"], about["texts"]
    of_images, of_texts = _by_hand(run, labels, images)
    assert (names, texts, about["weights"], about["update"]) == (list(map(str, images)), labels, "ema", 50)
    assert np.abs(arrays["images"] - of_images.numpy()).max() < 1e-6
    assert np.abs(arrays["texts"] - of_texts.numpy()).max() < 1e-6
    assert arrays["images"].dtype == np.float32


def test_without_labels_the_classes_of_the_run_are_told_apart(
    capsys: pytest.CaptureFixture[str], run: Path, files: Path
) -> None:
    tested = read_json(run / "summary.json")["test"]
    found = _rows(command(capsys, "predict", run, files, "--format", "jsonl", "--top", "1").out)
    names = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
    right = [row["top"][0]["class"] == names[int(Path(row["image"]).parent.name)] for row in found]
    assert 100 * np.mean(right) == pytest.approx(tested["zero_shot_top1"])
    of_split = command(capsys, "predict", run, "--split", "test", "--format", "jsonl")
    assert np.mean([row["right"] for row in _rows(of_split.out)]) == pytest.approx(np.mean(right))


def test_evaluate_gives_what_the_run_measured(capsys: pytest.CaptureFixture[str], run: Path) -> None:
    *_, line = [
        line for line in read_metrics(run / "metrics.jsonl") if line["kind"] == "eval" and line["weights"] == "ema"
    ]
    result = command(capsys, "evaluate", run, "--json", "found.json")
    found = read_json(Path("found.json"))
    assert line["split"] == found["data"] == "test"
    assert {name: found[name] for name in found if name in line and name != "seconds"} == {
        name: line[name] for name in line if name in found and name != "seconds"
    }
    assert f"top1 {line['zero_shot_top1']:.2f} %" in result.out
    assert f"image→text  R@1 {line['image_to_text_recall_at_1']:.2f} %, R@5" in result.out


def test_class_folders_are_evaluated_by_their_names(
    capsys: pytest.CaptureFixture[str], run: Path, files: Path, tmp_path: Path
) -> None:
    names = ("zero", "one", "two")
    for number, name in enumerate(names):
        (tmp_path / "data" / name).mkdir(parents=True)
        for path in sorted((files / str(number)).iterdir())[:10]:
            (tmp_path / "data" / name / path.name).write_bytes(path.read_bytes())
    result = command(capsys, "evaluate", run, "--folder", "data", "--json", "found.json", "--csv", "tables")
    found = read_json(Path("found.json"))
    assert (result.code, found["seen"], [row["class"] for row in found["classes"]]) == (0, 30, sorted(names))
    model = load(run, device="cpu")
    assert isinstance(model, DualEncoder)
    prompts = ["a handwritten {}", "the digit {}"]
    assert found["top1"] == model.classifier(sorted(names), prompts).evaluate("data").top1
    assert found["top1"] > 50
    assert (tmp_path / "tables" / "classes.csv").is_file()


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--labels", "a, b"], "--labels: name images too: files, patterns or --folder DIR"),
        (["IMAGE", "--labels", "a,"], "--labels: takes two texts or more, with commas between them"),
        (["IMAGE", "--labels", "none.txt"], "--labels: none.txt cannot be read"),
        (["IMAGE", "--labels", "a,b", "--text", "c"], "--text: ranks images for a text and --labels texts"),
        (["--text", "a"], "--text: name images too"),
        (["--embeddings", "x.npz"], "--embeddings: name images too"),
        (["IMAGE", "--embeddings", "x.pt"], "--embeddings: name the file .safetensors or .npz, not x.pt"),
        (["IMAGE", "--text", "a", "--split", "val"], "--split: its samples are classified by the run's classes"),
        (["IMAGE", "--text.tokenizer", "gone.json"], "text.tokenizer: gone.json is not there"),
        (["IMAGE", "--text.tokenizer", "merges.txt"], "text.tokenizer: merges.txt is not the one that"),
    ],
)
def test_mistakes_are_one_line(
    capsys: pytest.CaptureFixture[str], run: Path, files: Path, words: list[str], problem: str
) -> None:
    image = next((files / "0").iterdir())
    Path("merges.txt").write_text("#version: 0.2\na b\n")
    result = command(capsys, "predict", run, *[image if word == "IMAGE" else word for word in words])
    assert result.code == 2
    assert result.err.startswith(f"vit-dist: {problem}"), result.err
    assert len(result.err.splitlines()) == 1


def test_flags_of_captions_are_refused_by_a_classifier(
    capsys: pytest.CaptureFixture[str], tmp_path_factory: pytest.TempPathFactory, files: Path, run: Path
) -> None:
    classifier, image = train_digits_run(tmp_path_factory), next((files / "0").iterdir())
    for flag, value in (("--labels", "a,b"), ("--text", "a"), ("--folder", files), ("--embeddings", "x.npz")):
        result = command(capsys, "predict", classifier, image, flag, value)
        assert result.code == 2
        assert result.err == (
            f"vit-dist: {flag}: is for runs on images and captions (loss.name clip or siglip), and {classifier} is a "
            "classifier: leave it out\n"
        )
    result = command(capsys, "evaluate", run, "--csv", "tables")
    assert (result.code, result.err.partition(":")[2].partition(":")[0].strip()) == (2, "--csv")
