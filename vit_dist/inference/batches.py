"""Read images as a trained model's evaluation does: batches of pixels in order, by workers if there are many."""

from __future__ import annotations

from collections.abc import Iterator

from vit_dist.data.reader import HostBatch, OnBadSample
from vit_dist.data.sources.source import Source
from vit_dist.data.sources.splits import all_of
from vit_dist.data.stream import evaluation_reader
from vit_dist.data.workers import Workers
from vit_dist.inference.load import TrainedModel
from vit_dist.plan.plan import evaluation_slots


def read_batches(
    trained: TrainedModel, source: Source, on_bad_sample: OnBadSample, *, batch_size: int, workers: int
) -> Iterator[HostBatch]:
    """Yield all images of a source in batches of one size, the last filled with slots of weight 0.

    workers: the most processes that read, if there is more than one batch. Raises UserError.
    """
    length, data = len(source), trained.config.data
    reader = evaluation_reader(all_of(source), trained.preprocessing, on_bad_sample)
    batch_size = min(batch_size, length)
    count = workers if length > batch_size else 0  # to start them takes longer
    pool = Workers(reader, count, timeout=data.timeout)
    try:
        yield from pool.read(evaluation_slots(length, batch_size, 0, 1))
    finally:
        pool.close()
