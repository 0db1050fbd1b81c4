"""The streams of a run: of its training batches, and of the splits that it evaluates."""

from __future__ import annotations

from vit_dist.data.stream import EvaluationStream, Stream
from vit_dist.data.workers import worker_count
from vit_dist.models.build import drop_path_depth
from vit_dist.runtime.runtime import Runtime
from vit_dist.training.components import Components


def build_streams(components: Components, runtime: Runtime) -> tuple[Stream, dict[str, EvaluationStream]]:
    """Return the training stream, and those of the other splits by name."""
    config, data, preprocessing = components.config, components.data, components.preprocessing
    workers = worker_count(config.data.workers, runtime.cores)
    timeout, on_bad_sample = config.data.timeout, config.data.on_bad_sample
    stream = Stream(
        data.splits["train"],
        components.plan,
        preprocessing,
        config.augment,
        runtime,
        workers=workers,
        timeout=timeout,
        on_bad_sample=on_bad_sample,
        classes=len(data.classes),
        drop_path_depth=drop_path_depth(components.model),
        tokenizer=components.tokenizer,
    )
    size = config.evaluate.batch_size
    return stream, {
        name: EvaluationStream(
            split,
            preprocessing,
            runtime,
            batch_size=size,
            workers=workers,
            timeout=timeout,
            on_bad_sample=on_bad_sample,
        )
        for name, split in data.splits.items()
        if name != "train"
    }
