"""Tell the layout of a folder: splits outside or inside class folders, class folders alone, or none that is known."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field

from vit_dist.data.sources.names import class_of, composed, is_filler, split_words
from vit_dist.data.sources.scan import Folder, folders_beside, table_beside
from vit_dist.data.sources.splits import LeftOut
from vit_dist.errors import UserError

LOOSE, BESIDE = "images in no class folder", "images in folders beside the splits"
_WORKS = "what works: CLASS/*.jpg for each class, or train/CLASS/*.jpg with val/CLASS/*.jpg and test/CLASS/*.jpg"

Classes = dict[str, list[Folder]]


@dataclass
class Layout:
    """What a folder was taken for: split → class → its folders; what that leaves out; notes for the user."""

    splits: dict[str, Classes]
    left_out: list[LeftOut] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Named:
    """The folders in one folder by their names: splits that hold folders, splits that hold images only, the others.

    unwrapped: of each split, the folder that its class folders are in. empty: the splits without images.
    """

    unwrapped: dict[Folder, Folder]
    splits: dict[Folder, str]
    flat: dict[Folder, str]
    others: list[Folder]
    empty: list[str]

    @property
    def kinds(self) -> set[str]:
        """Return the splits that are there."""
        return {*self.splits.values(), *self.flat.values()}

    @property
    def unclear(self) -> bool:
        """Return whether the one split with folders in it may as well be a class, as others stand beside it."""
        return bool(self.splits) and bool(self.others) and len(self.kinds) == 1


def find_layout(root: Folder, classes: str) -> Layout:
    """Tell the layout of a folder, or of the one folder below it that holds all images.

    classes: auto, outer or inner (`data.classes`). Raises UserError, with the tree and the layouts that work, for one
    that is not known or could be two.
    """
    here = root
    while not (layout := _layout_at(root, here, classes)):
        here = here.folders[0]
    if here is not root:
        layout.notes.insert(0, f"data.root: read {here.path}, the only folder with classes in {root.path}")
        layout.left_out += loose(root)
    kinds = dict.fromkeys(kind.kind for kind in layout.left_out)
    layout.left_out = [_together([other for other in layout.left_out if other.kind == kind]) for kind in kinds]
    return layout


def _layout_at(root: Folder, here: Folder, classes: str) -> Layout | None:
    """Return the layout of a folder below the root; None if it only holds another one, in which to look."""
    named = _by_name(here)
    if named.splits and not (named.unclear and classes == "outer" and _is_class(next(iter(named.splits)))):
        return _splits_outside(root, here, named, classes)
    if len(set(named.flat.values())) > 1 and not named.others:
        raise _refused(root, f"{_names(named.flat)} hold images and no class folders")
    inside = [folder for folder in here.folders if _has_splits_inside(folder)]
    nested = [folder for folder in here.folders if _leads_to_splits(folder)]
    if len(here.folders) == 1:
        only = here.folders[0]
        if inside:
            raise _refused(root, f"{_names(only.folders)} in {only.name} hold images and no class folders")
        if _leads_to_splits(only) or (only.folders and not (here.images or only.images)):
            return None
    elif inside:
        return _splits_inside(root, here, inside)
    elif nested:
        raise _refused(root, f"{nested[0].name} in it holds splits: give {nested[0].path}")
    return _classes_alone(root, here, classes)


def _by_name(here: Folder) -> _Named:
    empty = [composed(name) for name in here.empty]
    words = split_words([*(folder.name for folder in here.folders), *empty])
    named = {folder: words[folder.name] for folder in here.folders if folder.name in words}
    several = [found.folders for folder in named if len((found := _unwrapped(folder)).folders) > 1]
    classes = {inner.name.casefold() for folders in several for inner in folders}
    unwrapped = {folder: _unwrapped(folder, classes) for folder in named}
    splits = {folder: split for folder, split in named.items() if unwrapped[folder].folders}
    return _Named(
        unwrapped,
        splits,
        {folder: split for folder, split in named.items() if folder not in splits},
        [folder for folder in here.folders if folder not in named],
        [name for name in empty if name in words],
    )


def _leads_to_splits(folder: Folder) -> bool:
    """Return whether a folder holds splits of class folders, or only another one that does."""
    named = _by_name(folder)
    if named.splits and not named.unclear:
        return True
    return len(folder.folders) == 1 and _leads_to_splits(folder.folders[0])


def _is_class(folder: Folder) -> bool:
    """Return whether the folders in a folder hold images, not folders."""
    return not any(inner.folders for inner in folder.folders)


def _unwrapped(folder: Folder, classes: Collection[str] = ()) -> Folder:
    """Return the folder that a split's only folder leads to, if it says nothing: seg_train/seg_train, train/images.

    classes: names of class folders of other splits, which say something: val/0, beside train/0 and train/1.
    """
    while len(folder.folders) == 1 and not folder.images:
        inner = folder.folders[0]
        name = inner.name.casefold()
        if name in classes or (name != folder.name.casefold() and not is_filler(inner.name)):
            break
        folder = inner
    return folder


def _has_splits_inside(folder: Folder) -> bool:
    """Return whether a folder holds nothing but splits that hold images: cat/train/*.jpg, cat/val/*.jpg."""
    names = {inner.name for inner in folder.folders}
    images = any(inner.images for inner in folder.folders)
    return images and not folder.images and split_words(names).keys() == names


def _splits_outside(root: Folder, here: Folder, named: _Named, classes: str) -> Layout:
    """Read train/CLASS/*.jpg, val/CLASS/*.jpg, test/CLASS/*.jpg. Raises UserError."""
    splits, others = named.splits, _names(named.others)
    first, split = next(iter(splits.items()))
    if named.unclear:
        raise _refused(
            root,
            f"{first.name} holds folders, and {others} {'stands' if len(named.others) == 1 else 'stand'} beside it: if "
            f"it is the {split} split, move {others} away or rename to val or test; if it is a class, set data.classes "
            "outer",
        )
    if named.empty:
        raise _refused(root, f"{named.empty[0]} has no images: fill it, or remove it")
    unlabelled = [folder for folder, split in named.flat.items() if split != "test"]
    if unlabelled:
        raise _refused(root, f"{_names(unlabelled)} {_hold(unlabelled)} images and no class folders")
    if "train" not in splits.values():
        raise _refused(root, f"it has {', '.join(sorted(named.kinds))} but no train folder")
    layout = Layout({}, [LeftOut(BESIDE, folder.count, folder.name) for folder in named.others])
    sources: dict[str, Folder] = {}
    for folder, split in splits.items():
        if split in sources:
            raise UserError(f"data.root: {sources[split].path} and {folder.path} are both the {split} split: keep one")
        sources[split] = folder
        layout.left_out += loose(named.unwrapped[folder])
        layout.splits[split] = _class_folders(root, named.unwrapped[folder], classes, layout)
    for folder in named.flat:
        layout.left_out.append(LeftOut(LOOSE, folder.count, folder.name))
        layout.notes.append(
            f"data.root: {folder.name} has no class folders, so nothing is tested on it; predict {folder.path} later"
        )
    layout.left_out += loose(here)
    _match_classes(layout, sources)
    return layout


def _splits_inside(root: Folder, here: Folder, inside: list[Folder]) -> Layout:
    """Read CLASS/train/*.jpg, CLASS/val/*.jpg. Raises UserError."""
    others = [folder.name for folder in here.folders if folder not in inside]
    if others:
        raise _refused(root, f"{inside[0].name} holds {_names(inside[0].folders)}, and {others[0]} holds no splits")
    layout = Layout({}, loose(here))
    for folder in inside:
        words = split_words([*(inner.name for inner in folder.folders), *folder.empty])
        for inner in folder.folders:
            layout.splits.setdefault(words[inner.name], {}).setdefault(folder.name, []).append(inner)
    if "train" not in layout.splits:
        raise _refused(root, f"the class folders hold {', '.join(layout.splits)} but no train folder")
    for split, found in layout.splits.items():
        for name in found:
            if name not in layout.splits["train"]:
                raise _refused(root, f"class {name} has a {split} folder and no images in a train folder: add some")
    lost = {split: name for folder in inside for name, split in split_words(folder.empty).items()}
    for split, name in lost.items():
        if split not in layout.splits:
            raise _refused(root, f"{name} has no images in any class folder: fill it, or remove it")
    return layout


def _classes_alone(root: Folder, here: Folder, classes: str) -> Layout:
    """Read CLASS/*.jpg. Raises UserError."""
    if not here.folders:
        others = folders_beside(here)
        parent = f"give the folder that it and {', '.join(others)} are in, {os.path.dirname(here.path)}"
        fix = parent if others else "put the images of each class into a folder of its own"
        fix += f"; {table}" if (table := table_beside(here.path)) and not others else ""
        raise _refused(root, f"{here.name} holds images and no class folders: {fix}")
    layout = Layout({}, loose(here))
    layout.splits["train"] = _class_folders(root, here, classes, layout)
    return layout


def _class_folders(root: Folder, folder: Folder, classes: str, layout: Layout) -> Classes:
    """Return class → its folders, of one split; names that are one in Unicode's composed form are one class."""
    groups = [inner for inner in folder.folders if len(inner.folders) > 1 and 2 * len(inner.images) < inner.count]
    if groups and classes == "auto":
        first = groups[0]
        names = _names(folder.folders)
        finer = ", ".join(f"{first.name}/{inner.name}" for inner in first.folders[:2])
        if not any(other.images for other in folder.folders if other not in groups):
            raise _refused(
                root,
                f"{names} {_hold(folder.folders)} folders, not images: set data.classes inner for the classes "
                f"{finer} …, or data.classes outer for the classes {names}",
            )
        layout.notes.append(
            f"data.root: the folders in {first.path} ({_names(first.folders)}) are one class, {first.name}; for the "
            f"classes {finer} … set data.classes inner"
        )
    found: Classes = {}
    for outer in folder.folders:
        finer_folders = outer.folders if classes == "inner" else []
        if finer_folders:
            layout.left_out += loose(outer)
        for inner in finer_folders:
            found.setdefault(f"{outer.name}/{inner.name}", []).append(inner)
        if not finer_folders:
            found.setdefault(outer.name, []).append(outer)
    cases: dict[str, str] = {}
    for name, folders in found.items():
        if len(folders) > 1:
            layout.notes.append(f"data.root: {len(folders)} folders in {folder.path} read {name}: they are one class")
        other = cases.setdefault(name.casefold(), name)
        if other != name:
            layout.notes.append(
                f"data.root: {other} and {name} in {folder.path} are two classes: move one if they are not"
            )
    return found


def _match_classes(layout: Layout, sources: dict[str, Folder]) -> None:
    """Give the classes of val and test the names that train has for them. Raises UserError for those it has not."""
    known, train = list(layout.splits["train"]), sources["train"]
    for split in [other for other in layout.splits if other != "train"]:
        matched: Classes = {}
        for name, folders in layout.splits[split].items():
            match = class_of(name, known)
            if match is None:
                raise UserError(
                    f"data.root: class {name} is in {sources[split].path} and not in {train.path}: add images of it "
                    f"there, or move {folders[0].path} away"
                )
            if match != name:
                layout.notes.append(f"data.root: {name} in {sources[split].name} is the class {match} of {train.name}")
            matched.setdefault(match, []).extend(folders)
        layout.splits[split] = matched


def loose(folder: Folder) -> list[LeftOut]:
    """Return the images in a folder itself, as left out; none if there are none."""
    images = folder.images
    return [LeftOut(LOOSE, len(images), os.path.join(folder.name, images[0]))] if images else []


def _together(kinds: Sequence[LeftOut]) -> LeftOut:
    return LeftOut(kinds[0].kind, sum(kind.count for kind in kinds), kinds[0].example)


def _names(folders: Iterable[Folder]) -> str:
    names = [folder.name for folder in folders]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _hold(folders: Sequence[Folder]) -> str:
    return "holds" if len(folders) == 1 else "hold"


def _refused(root: Folder, why: str) -> UserError:
    tree = (f"    {line}" for line in root.tree())
    return UserError("\n".join([f"data.root: {root.path}: {why}", "  found:", *tree, f"  {_WORKS}"]))
