"""The commands: what each does, its positionals, its own flags, and the fields of the config that it takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from vit_dist.config.recipe import RECIPES
from vit_dist.inference.output import FORMATS


@dataclass(frozen=True)
class Usage:
    """The arguments that a command takes.

    positionals: name → meaning, with the number of them from `min` to `max` (None: any number).
    flags: name → (name of the value, meaning); the name of the value is empty for a flag without one.
    fields: beginnings of the dotted names of the fields that it takes.
    """

    description: str
    flags: Mapping[str, tuple[str, str]]
    positionals: Mapping[str, str]
    min: int
    max: int | None
    fields: tuple[str, ...] = ()

    def takes(self, name: str) -> bool:
        """Return whether a field of the config is a flag of the command."""
        return name.startswith(self.fields) and not (self.positionals and name in _ONLY_FOR_TRAINING)

    def __str__(self) -> str:
        """Return the usage line, without the command."""
        if self.positionals:
            ends = dict.fromkeys(list(self.positionals)[-1:], " …" if self.max is None else "")
            optional = list(self.positionals)[self.min :]
            names = [f"[{name}{ends.get(name, '')}]" if name in optional else name for name in self.positionals]
            more = f" [{names[-1]} …]" if self.max is None and self.min == len(names) else ""
            return f"{' '.join(names)}{more} [--flag VALUE …]"
        flags = [f"[{flag} {value}]" if value else f"[{flag}]" for flag, (value, _) in self.flags.items()]
        return f"{' '.join(flags)} [--section.field VALUE …]"


RUN_COLUMNS = ("when", "name", "data", "model", "best", "test", "epochs", "seconds", "state")
RUN_STATES = ("finished", "running", "stopped", "failed", "killed")

_ONLY_FOR_TRAINING = (
    *("model.init", "model.dropout", "model.attention_dropout", "model.drop_path", "model.freeze"),
    "model.linear_probe",
)


_MODEL_FIELDS = (
    *("model.", "data.", "text.tokenizer", "text.prompts", "evaluate.batch_size", "run.device", "run.threads"),
    "train.precision",
)


_MODEL = "the folder of a run, a checkpoint or an export; FILE.safetensors; or timm/NAME"


_WEIGHTS = ("raw|ema", "the last weights or their EMA; default: those that the run's metric picked")


_TRUST = ("", "run a function that the model's run names as its model; without it such a run is refused")


_RECIPE = (
    f"--config takes a shipped recipe ({', '.join(path.stem for path in sorted(RECIPES.glob('*.yaml')))}) or a YAML "
    "file. Without it: the recipe named like data.name; finetune if model.pretrained is set; folder if data.root is; "
    "else digits. Recipes set other values than the defaults below; --print_config shows the result."
)


_CONFIG_FLAGS = {
    "--config": ("RECIPE|FILE", "shipped recipe or YAML file to start from"),
    "--print_config": ("", "print the whole config as YAML and exit"),
    "--trust_code": ("", "run a function that a teacher's run names as its model; without it such a run is refused"),
}


_PROCESSES = ("N", "processes that work at the same time; default: one for each core, 16 at most")


USAGES = {
    "train": Usage(
        f"Train a Vision Transformer. {_RECIPE}",
        {
            **_CONFIG_FLAGS,
            "--replay": ("", "train nothing: compute the update at which the run failed again, and show its numbers"),
        },
        {},
        0,
        0,
        ("",),
    ),
    "plan": Usage(
        "Show what `train` with the same flags would do, without training or touching the run's folder: every number "
        f"of the run, its memory, the curve of its learning rate, with --measure how long it takes. {_RECIPE}",
        {
            **_CONFIG_FLAGS,
            "--processes": ("N", "processes to plan for (default: 1)"),
            "--measure": ("", "time a few updates and evaluations on this machine: seconds per epoch and in all"),
            "--png": ("FILE", "also draw the learning rate"),
        },
        {},
        0,
        0,
        ("",),
    ),
    "check": Usage(
        "Look at every image of every split before they are trained on, each decoded in full: images that cannot be "
        "read, odd ones, copies within and across splits, copies under another label, classes with few images. Writes "
        "a page, check.json and leave_out.txt, a list for --data.leave_out of what is broken. Exit code 1 if something "
        "is: images that cannot be read, or the same image in two splits or under two labels. With --speed: how fast "
        f"the images are read here. {_RECIPE}",
        {
            "--config": _CONFIG_FLAGS["--config"],
            "--print_config": _CONFIG_FLAGS["--print_config"],
            "--out": ("DIR", "folder of the page, the JSON and the list; default: check"),
            "--speed": ("", "check nothing: measure reading, decoding and transforming, in images/s"),
            "--devices": ("N", "with --speed: devices on this machine that train at once (default: its GPUs, or 1)"),
            "--rate": ("X", "with --speed: images/s that each device trains; says whether it would wait for images"),
        },
        {},
        0,
        0,
        ("",),
    ),
    "runs": Usage(
        "List the runs in a folder: data, model, the fields in which runs on the same data differ, best evaluation, "
        "accuracy on test with its 95 % interval, epochs, time, state. Newest first.",
        {
            "--sort": ("COLUMN", f"{', '.join(RUN_COLUMNS)}; default: when. Figures: the best first"),
            "--state": ("STATE", f"only runs that are {', '.join(RUN_STATES)}"),
            "--where": ("FIELD=VALUE[,…]", "only runs with these values in their config, as model.name=vit_tiny"),
            "--csv": ("FILE", "write the table to a file, or with - to standard output"),
        },
        {"DIR": "the folder that the runs are in (default: runs)", "WORD": "to be in the names of the runs"},
        0,
        None,
    ),
    "report": Usage(
        "Draw the curves, mistakes and inputs of a run on a page that opens from the disk (RUN/report/index.html), "
        "with PNGs next to it; also while the run is going on. For several runs: a comparison as a page, Markdown and "
        "PNGs.",
        {"--out": ("DIR", "folder of the page; default: RUN/report, or comparison for several runs")},
        {"RUN": "the folder of a run; several are compared"},
        1,
        None,
    ),
    "evaluate": Usage(
        "Evaluate a model on a split or a folder, each sample exactly once, on any number of processes.",
        {
            "--split": ("NAME", "train, val or test of the model's data; default: test, else val"),
            "--folder": ("DIR", "all images in folders named after the classes, instead of a split"),
            "--weights": _WEIGHTS,
            "--json": ("FILE", "write the result, with every class"),
            "--csv": ("DIR", "write classes.csv (precision, recall, F1 of each) and confusion.csv to a folder"),
            "--trust_code": _TRUST,
        },
        {"MODEL": _MODEL},
        1,
        1,
        _MODEL_FIELDS,
    ),
    "predict": Usage(
        "Classify images, preprocessed as the model was trained. Without IMAGE and --split: 16 samples of the test "
        "split, and a picture of them. Samples without a file are named by their number in the data set. Exit code 1 "
        "if an image cannot be read: its row says why, and the others are classified.",
        {
            "--split": ("NAME", "all of train, val or test of the model's data"),
            "--labels": (
                "TEXTS",
                'of a run on captions: rank these texts for each image, "a cat,a dog", or a .txt with one a line',
            ),
            "--text": ("TEXT", "of a run on captions: rank the images for this text"),
            "--folder": ("DIR", "of a run on captions: a folder of images, besides IMAGE"),
            "--embeddings": ("FILE", "of a run on captions: write the embeddings to a .safetensors or .npz"),
            "--top": ("N", "classes or texts to show, default 3; images, default 10"),
            "--format": ("|".join(FORMATS), "default: by the suffix of --out, else table"),
            "--out": ("FILE", "default: standard output"),
            "--png": ("FILE", "also draw the first 64 images; default: predictions.png for the 16 of test"),
            "--weights": _WEIGHTS,
            "--trust_code": _TRUST,
        },
        {"MODEL": _MODEL, "IMAGE": "files, folders, patterns"},
        1,
        None,
        (*_MODEL_FIELDS, "run.seed"),
    ),
    "export": Usage(
        "Export a model to ONNX (tensors input and output, any batch size), checked against torch; or to a folder "
        "that timm and the Hugging Face Hub load. Of a run on captions: to NAME_image.onnx and NAME_text.onnx, or to a "
        "folder that open_clip loads.",
        {
            "--format": (
                "timm|open_clip",
                "of a folder; default: timm, or open_clip of a run on captions, whose image tower alone is for timm",
            ),
            "--preprocess": ("", "ONNX: take uint8 pixels and normalise them in the graph"),
            "--weights": _WEIGHTS,
            "--trust_code": _TRUST,
        },
        {"MODEL": _MODEL, "OUT": "FILE.onnx, or a new folder"},
        2,
        2,
        (
            "model.",
            "text.tokenizer",
            "data.image_size",
            "data.mean",
            "data.std",
            "data.crop",
            "data.fit",
            "data.interpolation",
        ),
    ),
    "checkpoint list": Usage(
        "List the checkpoints of a run: update, epoch, size, age, which is the best and which the last, and whether "
        "each is complete, by the sizes of its files; with --verify also by their hashes.",
        {"--verify": ("", "read all files and compare their hashes")},
        {"RUN": "the folder of a run"},
        1,
        1,
    ),
    "checkpoint verify": Usage(
        "Read all files of a run's checkpoints, or of one, and compare their hashes; one line for each. Exit code 1 if "
        "one is damaged.",
        {},
        {"PATH": "the folder of a run, or a checkpoint"},
        1,
        1,
    ),
    "checkpoint prune": Usage(
        "Remove all checkpoints of a run but the newest complete ones and the best. Damaged ones are left, and named. "
        "Not while a process trains there.",
        {
            "--keep": ("N", "complete checkpoints to keep, the best not counted"),
            "--damaged": ("", "remove damaged ones as well"),
        },
        {"RUN": "the folder of a run"},
        1,
        1,
    ),
    "shards build": Usage(
        "Pack image files into shards: tar files in WebDataset's layout, with an index, which train, evaluate and "
        "others read as data.root. Splits, classes and what will be held out as val are those of the images. A table's "
        "captions are packed too if data.columns.caption names their column. After an interruption, the same command "
        "goes on, to the same bytes.",
        {
            "--shard_size": ("SIZE", "most bytes of a shard, as 64MB or 1GiB; default: 128MiB"),
            "--processes": _PROCESSES,
        },
        {"IMAGES": "a folder of images, or a table of paths and labels", "OUT": "the new folder of the shards"},
        2,
        2,
        ("data.columns", "data.classes", "data.leave_out"),
    ),
    "shards index": Usage(
        "Write the index of tar files that others made in WebDataset's layout: images, each with a .cls, or a .json "
        "with its label, or a .txt with its captions. Names of classes are taken from classes.txt, one a line; splits "
        "from the names of the files.",
        {"--processes": _PROCESSES},
        {"FOLDER": "the folder of the tar files"},
        1,
        1,
    ),
    "shards verify": Usage(
        "Read all shards and compare them with the hashes in their index: names each shard and image that is damaged. "
        "Exit code 1 if one is.",
        {"--processes": _PROCESSES},
        {"FOLDER": "the folder of the shards"},
        1,
        1,
    ),
}
