from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from data_fakes import FakeFamily, data_config

from mtl.config.data_schema import DataConfig
from mtl.core.errors import ConfigError, DataError
from mtl.core.task import TaskSpec
from mtl.data.pipeline.datamodule import MultiTaskDataModule
from mtl.data.pipeline.splits import load_split
from mtl.report.run_report import split_sizes

DEFAULT = Path(__file__).parents[4] / "configs" / "data" / "default.yaml"
DEFAULTS = yaml.safe_load(DEFAULT.read_text())


def make(family, preprocessing, tasks=None, seed=0, rank=None, epoch=0, **groups) -> MultiTaskDataModule:
    module = MultiTaskDataModule(
        family, family.specs(), preprocessing, data_config(**groups), tasks, seed, records=family.records()
    )
    if rank is not None or epoch:
        global_rank, world_size = rank or (0, 1)
        module.trainer = SimpleNamespace(global_rank=global_rank, world_size=world_size, current_epoch=epoch)
    return module


def epoch_of(module: MultiTaskDataModule, loader=None) -> list[torch.Tensor]:
    return [batch.images for batch in loader or module.train_dataloader()]


def same(a, b) -> bool:
    """Whether containers of tensors, arrays and plain values hold the same; NaN is NaN."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, torch.Tensor):
        return torch.equal(a.nan_to_num(nan=-1e9), b.nan_to_num(nan=-1e9)) if a.is_floating_point() else torch.equal(a, b)
    return bool(a == b)


def equal(a, b) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_shipped_defaults_work_as_they_are(family, stretch):
    config = yaml.safe_load(DEFAULT.read_text())
    module = MultiTaskDataModule(
        family, family.specs(), stretch, DataConfig.model_validate({**config, "name": "fake"}), records=family.records()
    )
    module.setup("fit")
    assert next(iter(module.train_dataloader())).images.shape == (8, 3, 64, 64)
    from mtl.imaging.geometry import Geometry

    assert Geometry.from_dict(config["geometry"]) == Geometry()


def test_split_is_saved_and_reported(family, stretch, tmp_path):
    module = make(family, stretch)
    module.setup("fit")
    module.save_split(tmp_path / "split.csv")
    assert load_split(tmp_path / "split.csv") == module.split
    again = make(family, stretch, split={"scheme": "file", "file": str(tmp_path / "split.csv")})
    assert again.split == module.split
    table = {row["split"]: row for row in module.split_table}
    assert sum(row["images"] for row in table.values()) == 12 and table["train"]["groups"] == 4
    assert sum(row["classes"]["infected"] for row in table.values()) == module.class_counts("all")["infected"] == 12


def test_a_finished_runs_split_is_applied_and_asserted_again(family, stretch, tmp_path):
    module = make(family, stretch)
    module.setup("fit")
    module.save_split(tmp_path / "split.csv")
    rows = module.split_rows()
    assert rows[0].keys() == {"sample_id", "group", "source", "split", "content_hash"} and len(rows[0]["content_hash"]) == 64
    assert "kept apart by group" in module.describe_split() and "train 8 images of 4 groups (" in module.describe_split()

    resumed = make(family, stretch, split={"seed": 99})
    resumed.setup("fit", split_file=tmp_path / "split.csv")
    resumed.setup("fit")  # the Trainer calls it again
    assert resumed.split == module.split
    other = make(family, stretch, split={"seed": 99})
    assert not other.has_split
    other.use_split({row["sample_id"]: row["split"] for row in rows})
    assert other.has_split and other.split == module.split
    leaking = {**module.split, next(s for s, name in module.split.items() if name == "train"): "test"}
    with pytest.raises(DataError, match="is in two splits"):
        other.use_split(leaking)
    with pytest.raises(DataError, match="lacks 11 samples"):
        other.use_split({"s00": "train"})


def test_duplicates_across_patients_are_found_at_setup(family, stretch):
    first, last = family.records()[0], family.records()[-1]
    Path(last.path).write_bytes(Path(first.path).read_bytes())
    caught = 0
    for seed in range(6):
        try:
            make(family, stretch, split={"seed": seed}).setup("fit")
        except DataError as error:
            caught += "same image is in two splits" in str(error)
    assert caught


def test_all_samples_need_no_split(family, stretch):
    alone = type(family)(family.root, patients=1)
    module = make(alone, stretch)
    assert [meta.sample_id for batch in module.evaluation_dataloader("all") for meta in batch.meta] == ["s00", "s01"]
    with pytest.raises(DataError, match="at least 3 groups"):
        module.setup("fit")


@pytest.mark.parametrize("workers", [0, 2])
def test_epochs_differ_and_repeat_exactly(family, stretch, workers):
    def epochs(module, count):
        loader = module.train_dataloader()
        found = []
        for epoch in range(count):
            module.set_epoch(epoch)
            found.append(epoch_of(module, loader))
        return found

    first = epochs(make(family, stretch, loader={"num_workers": workers}), 3)
    assert not equal(first[0], first[1])
    # Resumed at epoch 2, and with another number of workers.
    resumed = make(family, stretch, epoch=2, loader={"num_workers": 2 - workers})
    assert equal(epoch_of(resumed), first[2])
    assert not equal(epoch_of(make(family, stretch, seed=1)), first[0])


def test_any_number_of_processes_makes_the_same_batches(family, stretch):
    """Images, targets of all tasks and where they come from, with every step of the augmentation that colours take."""
    likely = {"probability": 0.5}
    steps = {
        name: DEFAULTS["augmentation"][name] | likely for name in ("affine", "color_jitter", "stain_jitter", "blur", "noise")
    }
    augmentation = {"vertical_flip": 0.5, "rotate90": 0.5, **steps}

    def batches(workers: int) -> list[tuple]:
        module = make(family, stretch, augmentation=augmentation, loader={"num_workers": workers, "batch_size": 3})
        loader, found = module.train_dataloader(), []
        for epoch in range(2):
            module.set_epoch(epoch)
            found += [(batch.images, batch.targets, batch.present, batch.meta) for batch in loader]
        return found

    alone = batches(0)
    assert len(alone) > 2 and len({float(images.sum()) for images, *_ in alone}) == len(alone)
    for workers in (1, 2):
        assert same(batches(workers), alone)


def test_single_task_and_multi_task_runs_see_the_same_pictures(family, stretch):
    assert equal(epoch_of(make(family, stretch, tasks=["grade"])), epoch_of(make(family, stretch)))
    batch = next(iter(make(family, stretch, tasks=["grade"]).train_dataloader()))
    assert set(batch.targets) == set(batch.present) == {"grade"}


def test_budget(family, stretch):
    module = make(family, stretch, loader={"samples_per_epoch": 20})
    assert sum(len(batch) for batch in module.train_dataloader()) == module.samples_per_epoch == 20
    halves = [make(family, stretch, rank=(rank, 2), loader={"samples_per_epoch": 20, "batch_size": 5}) for rank in (0, 1)]
    assert [sum(len(batch) for batch in half.train_dataloader()) for half in halves] == [10, 10]


def test_a_set_smaller_than_a_batch_still_trains(family, stretch):
    module = make(family, stretch, loader={"batch_size": 64})
    assert [len(batch) for batch in module.train_dataloader()] == [8]


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_evaluation_counts_every_window_once(family, tiles, world_size):
    seen = []
    for rank in range(world_size):
        module = make(family, tiles, rank=(rank, world_size), loader={"eval_batch_size": 5})
        module.setup("fit")
        images = set()
        if module.val_dataloader().sampler.filler:  # a rank that is left without an image
            continue
        for batch in module.val_dataloader():
            assert len(batch) <= 5
            seen += [(meta.sample_id, meta.window.index) for meta in batch.meta]
            images |= {meta.sample_id for meta in batch.meta}
    assert len(seen) == len(set(seen)) == len(make(family, tiles).dataset("val"))


def test_evaluation_never_augments(family, stretch):
    module = make(family, stretch)
    assert equal(epoch_of(module, module.val_dataloader()), epoch_of(module, module.val_dataloader()))
    bare, augmented = module.unaugmented("train"), module.dataset("train")
    assert bare.transform is None and augmented.transform is not None and module.dataset("val").transform is None
    assert make(family, stretch).dataset("test").random_offset is False


class Sparse(FakeFamily):
    """Of each patient, training draws the first of three fields only."""

    def records(self):
        return [replace(record, training=int(record.sample_id[1:]) % 3 == 0) for record in super().records()]


def test_training_draws_less_than_the_split_that_is_scored(tmp_path, stretch):
    family = Sparse(tmp_path, fields=3).generate()
    module = make(family, stretch, loader={"batch_size": 2})
    module.setup("fit")
    whole = sorted(name for name, split in module.split.items() if split == "train")
    drawn = [name for name in whole if int(name[1:]) % 3 == 0]
    assert len(whole) == 12 and len(drawn) == 4
    stage = module.for_stage(["grade"], None, module.config.loader, seed=3)
    for one in (module, stage):
        assert [record.sample_id for record in one.records_by_split["train"]] == whole
        assert [record.sample_id for record in one.training_records] == drawn
        assert [record.sample_id for record in one.dataset("train").records] == drawn
        assert one.samples_per_epoch == len(drawn) and one.class_counts("train")["infected"] == len(drawn)
        assert {meta.sample_id for batch in one.train_dataloader() for meta in batch.meta} == set(drawn)
        assert [meta.sample_id for batch in one.evaluation_dataloader("train") for meta in batch.meta] == whole
        assert [one.unaugmented("train").truth(name).sample_id for name in whole] == whole
        assert {row["split"]: row["images"] for row in one.split_table} == {"train": 4, "val": 3, "test": 3}
        assert [row["unused"] for row in one.split_sizes] == [8, 0, 0]
    assert len(module.dataset("val")) == len(module.dataset("test")) == 3
    assert module.for_stage(["grade"], ("elsewhere",), module.config.loader, seed=3).training_records == []


def test_log_and_report_count_the_same_images(tmp_path, stretch):
    module = make(Sparse(tmp_path, fields=3).generate(), stretch)
    module.setup("fit")
    unused = "not used, because no active task has a label there or the image only serves evaluation: train 8"
    assert "train 4 images of 4 groups" in module.describe_split() and unused in module.describe_split()
    loaded = SimpleNamespace(split=module.split_rows())
    evaluation = SimpleNamespace(datamodule=module, loaded=loaded, chosen=SimpleNamespace(trained=True))
    assert split_sizes(evaluation) == ({"train": (4, 4), "val": (3, 1), "test": (3, 1)}, unused)
    # Where training images are gone, the stored split is all that is known of the run, and the page says so.
    evaluation.chosen.trained = False
    sizes, note = split_sizes(evaluation)
    assert sizes["train"] == (12, 4) and "also those that the run did not use" in note


def test_class_aware_sampling_prefers_the_priority_class(family, tiles):
    loader = {"sampler": "class_aware", "priority_class": "infected", "samples_per_epoch": 400, "batch_size": 10}

    def share(**options):
        module = make(family, tiles, loader={**loader, **options}, tasks=["detection"])
        rows = [row for batch in module.train_dataloader() for row in batch.targets["detection"]]
        return sum(bool((row["labels"] == 0).any()) for row in rows) / len(rows)

    assert share() > 1.2 * share(sampler="shuffle")


class Masked(FakeFamily):
    """Images of three classes, common to rare, of which nine have a mask."""

    def specs(self):
        grade = TaskSpec("grade", "classification", ("a", "b", "c"), label="class:grade")
        return {"grade": grade, "spots": TaskSpec("spots", "segmentation", ("spot",), label="mask:spots")}

    def records(self):
        records = []
        for number, record in enumerate(super().records()):
            grade = "c" if number % 20 == 0 else "b" if number % 4 == 0 else "a"
            mask = {"spot": 1} if number % 9 == 0 else {}
            labels = ("class:grade", *(f"mask:{name}s" for name in mask))
            counts = {name: int(name == grade) for name in "abc"} | mask
            records.append(replace(record, size=self.size, class_counts=counts, labels=labels, content_hash=record.sample_id))
        return records


def test_class_aware_sampling_counts_only_the_classes_of_tasks_that_are_trained(tmp_path, stretch, caplog):
    """The mask of another task must not decide how often an image is drawn."""
    loader = {"sampler": "class_aware", "samples_per_epoch": 20000}
    family = Masked(tmp_path, patients=60)

    def sampler(tasks, trained=None, **options):
        module = make(family, stretch, tasks, loader={**loader, **options})
        module = module.for_stage(trained, None, module.config.loader, 0) if trained else module
        sampler = module.train_dataloader().sampler
        return sampler, module.dataset("train").records

    for alone, records in (sampler(["grade"]), sampler(["grade", "spots"], ["grade"])):
        counts = Counter(name for record in records for name in "abc" if record.class_counts[name])
        rarity = [sum(counts.values()) / counts[max("abc", key=record.class_counts.get)] for record in records]
        masked = np.asarray(["spot" in record.class_counts for record in records])
        np.testing.assert_allclose(alone.weights, rarity)
        expected = np.asarray(rarity)[masked].sum() / sum(rarity)
        assert np.asarray(masked)[alone.order()].mean() == pytest.approx(expected, abs=0.01) and expected < 0.15
    both, records = sampler(["grade", "spots"])
    masked = np.asarray(["spot" in record.class_counts for record in records])
    assert masked[both.order()].mean() > 0.25  # a fourth class beside three, drawn as often as each of these

    assert set(sampler(["grade"], priority_class="spot")[0].weights) == set(sampler(["grade"])[0].weights)
    assert "data.loader.priority_class=spot has no effect: it is no class of grade" in caplog.text
    with pytest.raises(DataError, match="holds no `d`"):
        sampler(["grade"], priority_class="d")


def test_class_aware_sampling_of_tasks_without_counted_classes_is_a_shuffle(family, stretch, caplog):
    module = make(family, stretch, ["load"], loader={"sampler": "class_aware"})
    assert module.train_dataloader().sampler.weights is None
    assert "class_aware has no effect: no class of load is counted" in caplog.text


def test_cache_serves_the_same_batches(family, tiles, tmp_path):
    folder = tmp_path / "cache"
    family.memo_folder = folder
    uncached = epoch_of(make(family, tiles))
    module = make(family, tiles, cache={"enabled": True, "folder": str(folder)})
    module.setup("fit")
    family.decoded.clear()
    assert equal(epoch_of(module), uncached) and family.decoded == []
    assert len(list(folder.glob("files_*.json"))) == 1


@pytest.mark.parametrize(
    ("groups", "tasks", "message"),
    [
        ({"loader": {"sampler": "shufle"}}, None, "Did you mean `shuffle`"),
        ({}, ["detecton"], "Did you mean `detection`"),
    ],
)
def test_wrong_names(family, stretch, groups, tasks, message):
    with pytest.raises(ConfigError, match=message):
        make(family, stretch, tasks, **groups).train_dataloader()
    with pytest.raises(ConfigError, match="Did you mean `test`"):
        make(family, stretch).dataset("tests")


def test_lightning_may_not_shard_a_second_time(family, stretch):
    module = make(family, stretch, rank=(0, 2))
    module.trainer._accelerator_connector = SimpleNamespace(use_distributed_sampler=True)
    with pytest.raises(ConfigError, match=r"trainer\.use_distributed_sampler=false"):
        module.train_dataloader()


def test_inside_a_trainer_workers_learn_the_epoch(family, stretch, tmp_path):
    """The Trainer's own order of hooks, with workers, fresh and resumed: every epoch draws what it should."""
    import pytorch_lightning as pl

    class Recorder(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))
            self.seen: dict[int, list[float]] = {}

        def training_step(self, batch, _):
            self.seen.setdefault(self.current_epoch, []).append(float(batch.images.sum()))
            return self.weight.sum()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    def fit(epochs, workers, resume=None):
        module = Recorder()
        trainer = pl.Trainer(
            max_epochs=epochs, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
            default_root_dir=tmp_path, use_distributed_sampler=False, enable_checkpointing=False,
        )  # fmt: skip
        data = make(family, stretch, loader={"num_workers": workers})
        trainer.fit(module, datamodule=data, ckpt_path=resume)
        trainer.save_checkpoint(tmp_path / f"{epochs}.ckpt")
        return module.seen

    whole = fit(3, workers=1)
    assert len({tuple(values) for values in whole.values()}) == 3
    assert fit(2, workers=0) == {epoch: whole[epoch] for epoch in (0, 1)}
    assert fit(3, workers=1, resume=tmp_path / "2.ckpt") == {2: whole[2]}
