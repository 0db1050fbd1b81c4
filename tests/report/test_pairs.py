"""The report of a run on images and captions: its figures, pairs and similarities; comparisons and damaged files."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.runs import train_captions_run
from vit_dist.cli.runs_table import Row, table_lines
from vit_dist.data.sources.open import open_data
from vit_dist.errors import UserError
from vit_dist.files import read_json
from vit_dist.report.comparison import write_comparison
from vit_dist.report.measures import run_figures
from vit_dist.report.page import write_report
from vit_dist.report.pairs import drawings, headline, pair_tiles, verdict
from vit_dist.run_folder.pairs import PAIRS, Pairs, SavedPairs, read_pairs, write_pairs
from vit_dist.run_folder.record import best_of, read_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_captions_run(tmp_path_factory)


@pytest.fixture(scope="module")
def saved(run: Path) -> SavedPairs:
    found = read_pairs(run / PAIRS)
    assert found is not None
    return found


def test_the_page_shows_the_figures_and_the_pairs(run: Path, saved: SavedPairs, tmp_path: Path) -> None:
    page = write_report(run, tmp_path / "report").read_text()
    tested = read_json(run / "summary.json")["test"]
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page).replace(" ", " "))
    assert f"{tested['zero_shot_top1']:.2f} %" in text
    assert f"{tested['image_to_text_recall_at_1']:.2f} %" in text
    assert f"R@5 {tested['text_to_image_recall_at_5']:.1f}, R@10 {tested['text_to_image_recall_at_10']:.1f}" in text
    assert "guessing among 10 classes gives 10.0 %" in text
    best, worst = saved.shown()
    assert (len(best), len(worst)) == (16, 24)
    for pair in (*best, *worst):
        assert f"{pair.caption} ({pair.similarity:.2f})" in text
    for pair in worst:
        assert f"{pair.wrong} ({pair.wrong_similarity:.2f})" in text
    names = {path.stem for path in (tmp_path / "report").glob("*.png")}
    assert names >= {"loss", "zero_shot", "image_to_text", "text_to_image", "similarities", "best_pairs", "worst_pairs"}
    assert names.isdisjoint({"accuracy", "confusion", "mistakes"})
    assert "top1 classes" not in text
    head = next(line for line in page.splitlines() if "text→image R@1" in line and "<th" in line)
    assert "zero-shot top1" in head


def test_pairs_are_those_of_the_weights_that_count(run: Path, saved: SavedPairs) -> None:
    summary = read_json(run / "summary.json")
    about = saved.metadata
    assert (about["split"], about["weights"], about["update"]) == ("test", "ema", summary["best"]["update"])
    assert 100 * np.mean(saved.rank == 0) == pytest.approx(summary["test"]["image_to_text_recall_at_1"])
    best, worst = saved.shown()
    leads = [pair.similarity - pair.wrong_similarity for pair in (*best, *worst)]
    assert leads[:16] == sorted(leads[:16], reverse=True)
    assert leads[16:] == sorted(leads[16:])
    assert min(leads[:16]) > 0 > max(leads[16:])
    data = open_data(read_run(run).config.data, captions=True).splits["test"]
    assert data.captions is not None
    for pair, row in zip((*best, *worst), saved.rows.tolist(), strict=True):
        captions = data.captions[int(saved.index[row])]
        assert pair.caption in captions
        assert pair.wrong not in captions
        assert (pair.rank == 0) == (pair.similarity > pair.wrong_similarity)


def test_the_heat_map_is_of_images_and_their_own_captions(run: Path, saved: SavedPairs) -> None:
    assert saved.similarities.shape == (16, 16)
    assert len(set(saved.sample_captions)) == 16
    diagonal = np.diagonal(saved.similarities)
    assert diagonal.mean() > saved.similarities.mean() + 0.1


def test_a_tile_says_what_it_is_taken_for(saved: SavedPairs) -> None:
    best, worst = pair_tiles(saved)
    pair = saved.shown()[1][0]
    assert best[0].right is True
    assert worst[0].right is False
    assert worst[0].caption == f"{pair.wrong} ({pair.wrong_similarity:.2f})"
    assert worst[0].truth == f"{pair.caption} ({pair.similarity:.2f}), place {pair.rank + 1:,}"
    assert pair.in_words() == f"{worst[0].caption}, is {pair.caption} ({pair.similarity:.2f})"


def test_figures_of_the_run_everywhere(run: Path, tmp_path: Path) -> None:
    record = read_run(run)
    best, summary = best_of(record), read_json(run / "summary.json")
    assert best is not None
    assert (best["metric"], best["value"]) == ("zero_shot_top1", summary["best"]["value"])
    figures = run_figures(record)
    assert (figures.test_top1, figures.test_top5) == (
        summary["test"]["zero_shot_top1"],
        summary["test"]["zero_shot_top5"],
    )
    assert verdict(record).startswith(f"Zero-shot, {figures.test_top1:.1f} % of test are named right (±")
    assert headline(record)[0][0] == f"{figures.test_top1:.2f} %"
    [_, line] = table_lines([Row(run.name, record, figures)], None)
    assert f"zero_shot_top1 {best['value']:.1f} ±" in line
    other = tmp_path / "other"
    shutil.copytree(run, other)
    page, text = write_comparison([run, other], tmp_path / "comparison")
    assert f"{figures.test_top1:.2f} %" in text
    assert (page.parent / "accuracy.png").is_file()


def test_a_damaged_file_is_left_out_and_said(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    content = (folder / PAIRS).read_bytes()
    (folder / PAIRS).write_bytes(content[:1000])
    record = read_run(folder)
    assert record.pairs is None
    assert [problem for problem in record.problems if PAIRS in problem]
    assert "similarities" not in drawings(record)
    (folder / PAIRS).unlink()
    assert read_pairs(folder / PAIRS) is None


def test_a_file_of_pairs_is_read_as_it_was_written(saved: SavedPairs, tmp_path: Path) -> None:
    path = tmp_path / PAIRS
    write_pairs(path, saved)
    again = read_pairs(path)
    assert again is not None
    assert again.metadata == saved.metadata
    assert np.array_equal(again.similarities, saved.similarities)
    write_pairs(path, SavedPairs(**{**vars(saved), "rank": saved.rank[:-1]}))
    with pytest.raises(UserError, match=r"pairs\.safetensors: is not a file that vit_dist wrote"):
        read_pairs(path)


def test_best_and_worst_are_by_the_lead_of_the_own_caption() -> None:
    similarity, wrong = np.array([0.9, 0.5, np.nan, 0.2], np.float32), np.array([0.1, 0.6, 0.3, -np.inf], np.float32)
    numbers = np.zeros(4, np.int64)
    rank = np.array([0, 1, 3, 0])
    empty = np.zeros((0, 0), np.float32)
    pairs = Pairs(numbers, rank, similarity, wrong, numbers, numbers, ("a",), numbers[:0], (), empty)
    assert pairs.best(5).tolist() == [3, 0]
    assert pairs.worst(5).tolist() == [2, 1]
    assert pairs.worst(1).tolist() == [2]
