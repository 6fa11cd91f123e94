"""Which sample serves training, validation or test. Groups stay together, and the code asserts it.

A split depends on the sample ids, groups, strata and the seed only, never on the order of files. No torch in here.
"""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mtl.config.data_schema import SplitConfig
from mtl.core.errors import ConfigError, DataError, unknown
from mtl.core.files import file_hash, write_table
from mtl.core.memo import Memo
from mtl.core.types import Record
from mtl.data.formats.duplicates import connected
from mtl.data.pipeline.balance import balanced

SPLITS = ("train", "val", "test")
LEFT_OUT = "left_out"  # in no split: a copy of a test image in the official training set
COLUMNS = ("sample_id", "group", "source", "split", "content_hash")
HASH = "sha256"
Split = dict[str, str]
Unit = Callable[[Record], str]
Line = list[tuple[str, int]]  # units and how many samples are in each


def group_of(record: Record) -> str:
    """Return the unit of a record that test is kept apart by."""
    return record.group


def make_split(records: list[Record], config: SplitConfig) -> Split:
    """Assign every sample to `train`, `val` or `test`.

    Args:
        records: With `content_hash` filled (see `hash_records`), or the check for duplicates sees nothing.
        config: The section `data.split`.

    Returns:
        Split name by sample id; `left_out` for official training samples that are copies of official test samples.

    Raises:
        ConfigError: Unknown unit, or ratios that make no sense.
        DataError: Too few groups, a split without samples, or one group or file in two splits.
    """
    makers = {"holdout": _holdout, "kfold": _kfold, "leave_one_out": _leave_one_out, "official": _official, "file": _from_file}
    if not records:
        raise DataError("There are no samples to split; check data.root and the task's data settings.")
    records = sorted(records, key=lambda record: record.sample_id)
    split = makers[config.scheme](records, config)
    check_split(records, split, unit_of(records, config.val_group_by))
    return split


def check_split(records: list[Record], split: Split, val_unit: Unit = group_of) -> None:
    """Assert that no split is empty, and what `check_apart` does; arguments as there."""
    counts = {name: sum(split[record.sample_id] == name for record in records) for name in SPLITS}
    if empty := [name for name, count in counts.items() if not count]:
        groups = sorted({record.group for record in records})
        raise DataError(
            f"The split leaves {' and '.join(empty)} without samples: {len(records)} samples in {len(groups)} groups. "
            "Use a smaller unit (data.group_by, or data.split.val_group_by for validation), other data.split.ratios, "
            "or more data."
        )
    check_apart(records, split, val_unit)


def check_apart(records: list[Record], split: Split, val_unit: Unit = group_of) -> None:
    """Assert that no group and no file content serves two splits.

    Args:
        records: All samples.
        split: Split name by sample id.
        val_unit: Unit that is kept apart between training and validation. Test is always apart by `record.group`.
    """
    records = [record for record in records if split[record.sample_id] != LEFT_OUT]
    development = [record for record in records if split[record.sample_id] != "test"]
    for what, key, some in (
        ("Group", lambda record: (split[record.sample_id] == "test", record.group), records),
        ("Unit", lambda record: (split[record.sample_id], val_unit(record)), development),
    ):
        seen: dict[str, Any] = {}
        for record in some:
            side, name = key(record)
            if seen.setdefault(name, (side, record))[0] != side:
                other = seen[name][1]
                raise DataError(
                    f"{what} `{name}` is in two splits: `{other.sample_id}` in {split[other.sample_id]}, "
                    f"`{record.sample_id}` in {split[record.sample_id]}. Results would be too good; correct the split file or "
                    "choose another data.split.scheme."
                )
    contents: dict[str, Record] = {}
    for record in records:
        first = contents.setdefault(record.content_hash, record) if record.content_hash else record
        if split[first.sample_id] != split[record.sample_id]:
            raise DataError(
                f"The same image is in two splits: `{first.path}` in {split[first.sample_id]} and `{record.path}` in "
                f"{split[record.sample_id]}. Delete one of the two, or put both into one group."
            )


def unit_of(records: list[Record], name: str | None) -> Unit:
    """Return the function that names a record's unit for the cut between training and validation."""
    if name is None:
        return group_of
    known = {unit for record in records for unit in record.groups}
    if name not in known:
        raise ConfigError(unknown("unit", name, known, "data.split.val_group_by"))
    # Ids of small units may repeat in another group (field 1 of every patient), hence the pair. Where the unit of an image is
    # not known, its group stays together.
    return lambda record: f"{record.group} / {record.groups.get(name, record.group)}"


def _order(records: Iterable[Record], unit: Unit, config: SplitConfig) -> list[Line]:
    """List units in a random order that puts those of one stratum next to each other.

    Sources that share no unit (volumes of 155 slices, single pictures) get a line each: one large unit would outweigh a whole
    stratum of small ones.
    """
    sizes: dict[str, int] = defaultdict(int)
    strata: dict[str, int] = defaultdict(int)
    source: dict[str, str] = {}
    same: list[tuple[str, str]] = []
    for record in records:
        name = unit(record)
        sizes[name] += 1
        strata[name] = max(strata[name], int(record.stratum))
        same.append((source.setdefault(name, record.source), record.source))
    rng = np.random.default_rng(config.seed)
    names = sorted(sizes)
    position = dict(zip(names, rng.permutation(len(names)).tolist(), strict=True))
    if config.stratify:
        # Strata are grades, so neighbours on the line are alike; the seed decides at which end it starts.
        direction = 1 if rng.random() < 0.5 else -1
        names.sort(key=lambda name: (direction * strata[name], position[name]))
    else:
        names.sort(key=position.__getitem__)
    sources = sorted({name for pair in same for name in pair})
    number = {name: index for index, name in enumerate(sources)}
    blocks = connected(len(sources), {(number[a], number[b]) for a, b in same})
    lines: list[Line] = [[] for _ in range(max(blocks, default=-1) + 1)]
    for name in names:
        lines[blocks[number[source[name]]]].append((name, sizes[name]))
    return lines


def _apportion(records: Iterable[Record], unit: Unit, lines: list[Line], ratios: list[float]) -> list[list[str]]:
    """Walk along each line of units and give each unit to the part that is furthest behind its share.

    Shares hold along the whole line, hence within every stretch of it: units of one stratum are neighbours. No part stays
    empty while there are enough units. What that leaves unbalanced over all lines is mended by `balanced`.
    """
    shares = np.asarray(ratios, np.float64) / sum(ratios)
    found: list[list[Line]] = []
    for line in lines:
        behind = np.zeros(len(shares))
        mine: list[Line] = [[] for _ in ratios]
        for name, size in line:
            behind += shares * size
            target = int(np.argmax(behind))
            behind[target] -= size
            mine[target].append((name, size))
        for part in mine:
            richest = max(mine, key=len)
            if not part and len(richest) > 1:
                smallest = min(richest, key=lambda entry: entry[1])
                richest.remove(smallest)
                part.append(smallest)
        found.append(mine)
    labels: dict[str, frozenset[str]] = {}
    for record in records:
        labels[unit(record)] = labels.get(unit(record), frozenset()) | frozenset(record.labels or ())
    return balanced(found, shares, labels)


def _ratios(config: SplitConfig) -> list[float]:
    ratios = list(config.ratios)
    if any(value <= 0 for value in ratios):
        raise ConfigError(f"`data.split.ratios` is {ratios}; expected three numbers above 0 for train, val and test.")
    return ratios


def _names(lines: list[Line]) -> list[str]:
    return [name for line in lines for name, _ in line]


def _need(names: list[str], needed: int, what: str) -> None:
    if (units := len(names)) < needed:
        listed = ", ".join(sorted(names)[:5])
        raise DataError(
            f"{what} needs at least {needed} groups, found {units} ({listed}). Use a smaller unit (data.group_by, or "
            "data.split.val_group_by for validation), or more data."
        )


def _cut_validation(rest: list[Record], config: SplitConfig, unit: Unit) -> Split:
    """Split what is not test into train and val."""
    train, val, _ = _ratios(config)
    ordered = _order(rest, unit, config)
    _need(_names(ordered), 2, "Cutting validation from the training data")
    chosen = set(_apportion(rest, unit, ordered, [train, val])[1])
    return {record.sample_id: "val" if unit(record) in chosen else "train" for record in rest}


def _holdout(records: list[Record], config: SplitConfig) -> Split:
    ratios = _ratios(config)
    ordered = _order(records, group_of, config)
    separate = config.val_group_by is not None
    _need(_names(ordered), 2 if separate else 3, "A split into train, val and test")
    if not separate:
        parts = _apportion(records, group_of, ordered, ratios)
        where = {name: split for split, part in zip(SPLITS, parts, strict=True) for name in part}
        return {record.sample_id: where[record.group] for record in records}
    test = set(_apportion(records, group_of, ordered, [ratios[0] + ratios[1], ratios[2]])[1])
    return _with_test(records, test, config)


def _with_test(records: list[Record], test: set[str], config: SplitConfig) -> Split:
    rest = [record for record in records if record.group not in test]
    split = _cut_validation(rest, config, unit_of(records, config.val_group_by))
    return {**split, **{record.sample_id: "test" for record in records if record.group in test}}


def _fold(config: SplitConfig, count: int) -> int:
    if config.fold >= count:
        raise ConfigError(f"`data.split.fold` is {config.fold}; expected 0 to {count - 1}.")
    return config.fold


def _kfold(records: list[Record], config: SplitConfig) -> Split:
    """Fold k is test, fold k + 1 validates (or `val_group_by` cuts validation from the rest)."""
    folds = config.folds
    separate = config.val_group_by is not None
    if folds < (2 if separate else 3):
        raise ConfigError(f"`data.split.folds` is {folds}; expected at least 3 (test, val, train), or 2 with val_group_by.")
    fold = _fold(config, folds)
    ordered = _order(records, group_of, config)
    _need(_names(ordered), folds, f"A split into {folds} folds")
    parts = _apportion(records, group_of, ordered, [1.0] * folds)
    if separate:
        return _with_test(records, set(parts[fold]), config)
    where = {name: "train" for part in parts for name in part}
    where.update(dict.fromkeys(parts[(fold + 1) % folds], "val"))
    where.update(dict.fromkeys(parts[fold], "test"))
    return {record.sample_id: where[record.group] for record in records}


def _leave_one_out(records: list[Record], config: SplitConfig) -> Split:
    """Group number `fold` (in sorted order) is test; validation is cut from the others."""
    groups = sorted({record.group for record in records})
    _need(groups, 2, "Leaving one group out")
    return _with_test(records, {groups[_fold(config, len(groups))]}, config)


def _official(records: list[Record], config: SplitConfig) -> Split:
    without = [record.sample_id for record in records if record.official_split not in SPLITS]
    if without:
        raise DataError(
            f"data.split.scheme=official, but {len(without)} samples have no official split (first: {without[0]}). "
            "Use another scheme."
        )
    # The official test set stays what it is; what shares a group with it has to go from training.
    tested = {record.group for record in records if record.official_split == "test"}
    split = {
        record.sample_id: LEFT_OUT if record.official_split != "test" and record.group in tested else str(record.official_split)
        for record in records
    }
    if "val" in split.values():
        return split
    rest = [record for record in records if split[record.sample_id] == "train"]
    return {**split, **_cut_validation(rest, config, unit_of(records, config.val_group_by))}


def _from_file(records: list[Record], config: SplitConfig) -> Split:
    path = config.file
    if not path:
        raise ConfigError("data.split.scheme=file needs data.split.file=<a CSV file of samples and splits>.")
    rows = load_split_rows(path)
    if missing := [record.sample_id for record in records if record.sample_id not in rows]:
        raise DataError(
            f"Split file `{path}` lacks {len(missing)} of {len(records)} samples (first: {missing[0]}). "
            "It belongs to other data, or data.root holds more than it did."
        )
    if gone := sorted(set(rows) - {record.sample_id for record in records}):
        raise DataError(
            f"Split file `{path}` names {len(gone)} samples that data.root does not hold (first: {gone[0]})."
            " Restore them, or make a new split."
        )
    for record in records:
        stored = rows[record.sample_id]["content_hash"]
        if stored and record.content_hash and stored != record.content_hash:
            raise DataError(
                f"Image `{record.path}` is not the one that split file `{path}` was made with (its content differs). "
                "Restore the file, or make a new split."
            )
    return {record.sample_id: rows[record.sample_id]["split"] for record in records}


def hash_records(records: list[Record], memo: Memo | None = None) -> list[Record]:
    """Fill `content_hash` (sha256 of the image file).

    Args:
        records: Samples; several may share one file.
        memo: Remembers the hashes, so that the next run need not read every file again.
    """
    found: dict[str, str] = {}
    for path in dict.fromkeys(record.path for record in records):
        find = partial(file_hash, path)
        try:
            found[path] = memo.answer(HASH, [path], find, lambda value: isinstance(value, str)) if memo else find()
        except OSError as error:
            raise DataError(f"Image `{path}` cannot be read: {error.strerror}. Run `mtl data check`.") from error
    if memo:
        memo.write()
    return [replace(record, content_hash=found[record.path]) for record in records]


def split_rows(records: list[Record], split: Split) -> list[dict[str, str]]:
    """Return the rows of `split.csv` (keys `COLUMNS`), sorted by sample id."""
    values = (
        (record.sample_id, record.group, record.source, split[record.sample_id], record.content_hash)
        for record in sorted(records, key=lambda record: record.sample_id)
    )
    return [dict(zip(COLUMNS, row, strict=True)) for row in values]


def save_split(path: str | Path, records: list[Record], split: Split) -> None:
    """Write `split.csv`, sorted by sample id."""
    write_table(Path(path), split_rows(records, split), COLUMNS)


def load_split(path: str | Path) -> Split:
    """Read the split name by sample id from `split.csv`."""
    return {sample_id: row["split"] for sample_id, row in load_split_rows(path).items()}


def load_split_rows(path: str | Path) -> dict[str, dict[str, str]]:
    """Read the rows of `split.csv` by sample id; only `sample_id` and `split` are required columns."""
    try:
        with Path(path).open(newline="", encoding="utf-8") as file:
            table = list(csv.DictReader(file))
    except OSError as error:
        raise DataError(f"Split file `{path}` cannot be read: {error.strerror}. Set data.split.file.") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(
            f"Split file `{path}` is damaged: {error}. Expected a CSV file with the columns {', '.join(COLUMNS)}."
        ) from error
    if table and not {"sample_id", "split"} <= table[0].keys():
        found = ", ".join(str(column) for column in table[0])
        raise DataError(f"Split file `{path}` has the columns `{found[:80]}`. Expected at least sample_id and split.")
    rows: dict[str, dict[str, str]] = {}
    for number, row in enumerate(table, start=2):
        if row.get("split") not in (*SPLITS, LEFT_OUT) or not row.get("sample_id"):
            raise DataError(
                f"Split file `{path}`, line {number}: expected a sample_id and a split ({', '.join((*SPLITS, LEFT_OUT))}), "
                f"found `{row.get('sample_id')}` and `{row.get('split')}`."
            )
        if row["sample_id"] in rows:
            raise DataError(f"Split file `{path}`, line {number}: sample `{row['sample_id']}` is listed twice.")
        rows[row["sample_id"]] = {column: row.get(column) or "" for column in COLUMNS}
    return rows
