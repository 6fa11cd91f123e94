"""Every key of every data YAML does something: families, geometry, preprocessing, augmentation, split, loader, cache, tools."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import torch
from flip_tools import Flip, dead_keys, flips_for, leaf_keys, part_flips, put, tree
from pydantic import BaseModel

from mtl.config import data_schema, verbs
from mtl.config.compose import choices, compose
from mtl.config.load import DATA_KEYS, build_family, check_data
from mtl.config.plan import Plan
from mtl.core.errors import ConfigError
from mtl.core.registry import DATA_FAMILIES
from mtl.data.pipeline.datamodule import MultiTaskDataModule
from mtl.data.pipeline.transforms import Transform
from mtl.imaging.preprocessing import Preprocessing

TILES = {"geometry.mode": "tiles", "geometry.scale": 0.03, "geometry.overlap": 32}


def annotations_of(model: type[BaseModel], prefix: str = "") -> dict[str, Any]:
    """Types of all keys of a schema by dotted path."""
    found: dict[str, Any] = {}
    for key, annotation in get_type_hints(model).items():
        if key not in model.model_fields:
            continue
        inner = [entry for entry in (annotation, *getattr(annotation, "__args__", ())) if isinstance(entry, type)]
        nested = next((entry for entry in inner if issubclass(entry, BaseModel)), None)
        found |= annotations_of(nested, f"{prefix}{key}.") if nested else {f"{prefix}{key}": annotation}
    return found


GENERIC = annotations_of(data_schema.DataGenericConfig)


@pytest.fixture(scope="module")
def data(smears: Path) -> dict[str, Any]:
    config = Plan.from_words(["task=malaria_mttl", f"data.root={smears}"]).to_dict()["data"]
    return put(config, {"geometry.size": [64, 64]})


def module_of(data: dict[str, Any], tasks: tuple[str, ...] = ("detection", "segmentation", "heatmap")) -> MultiTaskDataModule:
    """The data module of a `data` section, checked as a run would check it."""
    checked, problems = check_data(data)
    assert not problems, problems
    section = data_schema.DataConfig.model_validate(checked)
    family = build_family(section)
    normalization = {"mean": [0.5] * 3, "std": [0.25] * 3}
    preprocessing = Preprocessing.from_config(checked["geometry"], checked["preprocessing"], normalization)
    return MultiTaskDataModule(family, family.specs(), preprocessing, section, list(tasks), records=family.records())


def keys_below(data: dict[str, Any], section: str) -> list[str]:
    return [key for key in leaf_keys(data) if key.startswith(f"{section}.")]


# -- families ----------------------------------------------------------------------------------------------------------


def copy_of(folder: Path, target: Path, keep: Callable[[Path], bool] = lambda path: True) -> Path:
    for path in sorted(folder.rglob("*")):
        if path.is_file() and keep(path):
            (target / path.relative_to(folder)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target / path.relative_to(folder))
    return target


def observe_family(config: dict[str, Any]) -> Any:
    family = DATA_FAMILIES.build({key: value for key, value in config.items() if key not in DATA_KEYS})
    records = family.records()
    return [
        [spec.to_dict() for spec in family.specs().values()],
        records,
        [family.read_labels(record) for record in records[:: max(1, len(records) // 3)]],
        family.pixel_scale_of((360, 640)),
    ]


def test_malaria(data: dict[str, Any], smears: Path, tmp_path: Path) -> None:
    first = min(path.name for path in (smears / "Point Set").iterdir())
    other = copy_of(smears, tmp_path / "other", lambda path: first not in path.parts)
    broken = copy_of(smears, tmp_path / "broken")
    annotation = next((broken / "Point Set").rglob("*.txt"))
    rows = annotation.read_text().splitlines()
    annotation.write_text("\n".join([rows[0], "1-1,Parasitized,No_Comment,Point,1,abc,3", *rows[2:]]))
    table = {
        "root": Flip(str(other)),
        "classes": Flip(2),
        "group_by": Flip("field"),
        "sets": Flip(["Polygon Set"]),
        "mask_size": Flip(100.0),
        "pixel_scale": Flip(0.5),
    }
    assert dead_keys(observe_family, data, part_flips(DATA_FAMILIES, data, table, without=["on_error"])) == []
    skipping = {**data, "root": str(broken), "on_error": "skip"}
    assert dead_keys(observe_family, skipping, {"on_error": Flip("raise", refuses=True)}) == []


def test_malaria_cells(cells: Path, tmp_path: Path) -> None:
    config = Plan.from_words(["task=malaria_cells", f"data.root={cells}"]).to_dict()["data"]
    other = copy_of(cells, tmp_path / "other", lambda path: not path.name.startswith("C1P"))
    assert dead_keys(observe_family, config, part_flips(DATA_FAMILIES, config, {"root": Flip(str(other))})) == []


def test_idrid(retinas: Path, tmp_path: Path) -> None:
    config = Plan.from_words(["task=idrid_mtl", f"data.root={retinas}"]).to_dict()["data"]
    other = copy_of(retinas, tmp_path / "other", lambda path: path.name != "IDRiD_55_EX.tif")
    table = {
        "root": Flip(str(other)),
        "sets": Flip(["grading"]),
        "missing_mask": Flip({**config["missing_mask"], "SE": "absent"}),
        "largest_share": Flip({**config["largest_share"], "OD": 0.001}, refuses=True),
    }
    assert dead_keys(observe_family, config, part_flips(DATA_FAMILIES, config, table)) == []


def test_skin(lesions: Path, tmp_path: Path) -> None:
    config = Plan.from_words(["task=skin_mtl", f"data.root={lesions}"]).to_dict()["data"]
    other = copy_of(lesions, tmp_path / "other")
    (other / "masks" / "SKIN_001_00.png").unlink()
    table = {
        "root": Flip(str(other)),
        "layout": Flip("isic", refuses=True),  # no image has such a name
        "attributes": Flip({**config["attributes"], "skin_type": ["normal", "dry", "oily"]}),
        "group_by": Flip("image"),
        "age_bands": Flip([50]),
    }
    assert dead_keys(observe_family, config, part_flips(DATA_FAMILIES, config, table)) == []


def test_brain(brains: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    config, problems = check_data(put(compose("data_tool", ["data=brain"])[0]["data"], {"root": str(brains)}))
    assert not problems
    other = copy_of(brains, tmp_path / "other", lambda path: "BraTS20_Training_002" not in path.parts)

    def observe(config: dict[str, Any]) -> Any:
        family = DATA_FAMILIES.build({key: value for key, value in config.items() if key not in DATA_KEYS})
        records = family.records()
        return [observe_family(config), family.channels, [family.read_image(records[index]) for index in (3, -1)]]

    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "brain").symlink_to(brains)
    monkeypatch.setenv("MTL_DATA_DIR", str(tmp_path / "home"))
    few = copy_of(brains / "kaggle", tmp_path / "few", lambda path: "Y1" not in path.name)
    table = {
        "root": Flip(str(other)),
        "folders.brats": Flip(str(other / "brats"), {"root": None}),
        "folders.kaggle": Flip(str(few), {"root": None}),
        "sets": Flip(["kaggle"]),
        "modalities": Flip(["t1", "t2"]),
        "unknown_modality": Flip("t2", {"modalities": ["flair", "t2"]}),
        "min_tumor_pixels": Flip(20),
        "min_brain_share": Flip(0.3),
    }
    own = {key: value for key, value in config.items() if key not in DATA_KEYS}
    keys = leaf_keys(own)
    assert {key.partition(".")[0] for key in keys} == set(DATA_FAMILIES.entry("brain").parameters)
    annotations = {key: entry.annotation for key, entry in DATA_FAMILIES.entry("brain").parameters.items()}
    assert dead_keys(observe, config, flips_for(keys, config, table, annotations)) == []


def test_tiger(regions: Path, tmp_path: Path) -> None:
    config, problems = check_data(put(compose("data_tool", ["data=tiger"])[0]["data"], {"root": str(regions)}))
    assert not problems
    other = copy_of(regions, tmp_path / "other", lambda path: "101B" not in path.name or path.parent.name != "masks")
    table = {
        "root": Flip(str(other)),
        "sets": Flip(["cells"]),
        "tissue": Flip({"tumor": [1], "stroma": [2], "other": [3, 4, 5, 6, 7]}),
        "spacing": Flip(0.25),
        "spacing_of": Flip({"TCGA-*": 0.25}),
        "sources": Flip({**config["sources"], "jb": None}),
        "group_by": Flip("patient"),
    }
    assert dead_keys(observe_family, config, part_flips(DATA_FAMILIES, config, table)) == []


def test_every_family_is_flipped() -> None:
    assert set(choices("data")) - {"default"} == {
        name.removeprefix("test_") for name in globals() if name.removeprefix("test_") in choices("data")
    }


# -- what all families share -------------------------------------------------------------------------------------------


def observe_windows(data: dict[str, Any]) -> Any:
    """All windows of the training images, without augmentation."""
    dataset = module_of(data).unaugmented("train")
    items = [dataset[index] for index in range(min(len(dataset), 8))]
    return [len(dataset), [[item["image"], item["targets"], item["meta"]] for item in items]]


def test_geometry(data: dict[str, Any]) -> None:
    table = {
        "geometry.size": Flip([64, 96]),
        "geometry.scale": Flip(0.04, given=TILES),
        "geometry.overlap": Flip(0, given=TILES),
        "geometry.fill": Flip(200, given={"geometry.mode": "letterbox"}),
        "geometry.min_visible": Flip(0.9, given=TILES),
    }
    assert dead_keys(observe_windows, data, flips_for(keys_below(data, "geometry"), data, table, GENERIC)) == []


def test_preprocessing(data: dict[str, Any]) -> None:
    table = {
        "preprocessing.foreground": Flip({"method": "zscore", "limit": 4.0}),
        "preprocessing.stain": Flip({"method": "macenko", "density": 0.15}),
        "preprocessing.crop": Flip({"threshold": 0.9, "margin": 0.0}),
        "preprocessing.clahe": Flip({"clip_limit": 2.5, "tiles": 4}),
        "preprocessing.mean": Flip([0.1, 0.2, 0.3]),
        "preprocessing.std": Flip([0.1, 0.2, 0.3]),
    }
    assert dead_keys(observe_windows, data, flips_for(keys_below(data, "preprocessing"), data, table, GENERIC)) == []
    equalised = put(data, {"preprocessing.clahe": {"clip_limit": 2.5, "tiles": 4}})
    flips = {"preprocessing.clahe.clip_limit": Flip(5.0), "preprocessing.clahe.tiles": Flip(2)}
    assert {key.rpartition(".")[2] for key in flips} == set(data_schema.ClaheConfig.model_fields)
    assert dead_keys(observe_windows, equalised, flips) == []
    cropped = put(data, {"preprocessing.crop": {"threshold": 0.9, "margin": 0.0}})
    flips = {"preprocessing.crop.threshold": Flip(0.8), "preprocessing.crop.margin": Flip(0.1)}
    assert {key.rpartition(".")[2] for key in flips} == set(data_schema.CropConfig.model_fields)
    assert dead_keys(observe_windows, cropped, flips) == []
    grey = put(data, {"preprocessing.foreground": {"method": "zscore", "limit": 4.0}})
    flips = {"preprocessing.foreground.method": Flip("percentile"), "preprocessing.foreground.limit": Flip(1.0)}
    assert {key.rpartition(".")[2] for key in flips} == set(data_schema.ForegroundConfig.model_fields)
    assert dead_keys(observe_windows, grey, flips) == []
    restained = put(data, {"preprocessing.stain": {"method": "macenko", "density": 0.15}})
    flips = {"preprocessing.stain.method": Flip("reinhard"), "preprocessing.stain.density": Flip(0.4)}
    assert {key.rpartition(".")[2] for key in flips} == set(data_schema.StainConfig.model_fields)
    assert dead_keys(observe_windows, restained, flips) == []


def test_augmentation(data: dict[str, Any]) -> None:
    dataset = module_of(data).unaugmented("train")
    sample = dataset[0]["meta"].sample_id
    raster = dataset.raster(sample)
    objects = dataset.family.read_labels(dataset.records[0]).objects.map(dataset.windows[0][0].original_to_working)

    def observe(config: dict[str, Any]) -> Any:
        transform = Transform(config["augmentation"], (64, 64), 0)
        return [transform(raster, objects, {"mask": (raster[..., 0] > 128).astype("uint8")}, seed) for seed in range(12)]

    def on(name: str) -> dict[str, Any]:
        return {f"augmentation.{name}.probability": 1.0}

    table = {
        **{f"augmentation.{name}": Flip(0.0) for name in ("horizontal_flip", "vertical_flip", "rotate90")},
        **{
            f"augmentation.{name}.probability": Flip(0.7)
            for name in ("affine", "color_jitter", "stain_jitter", "intensity_jitter", "blur", "noise")
        },
        "augmentation.affine.scale": Flip([0.5, 0.6], on("affine")),
        **{f"augmentation.affine.{key}": Flip(given=on("affine")) for key in ("translate", "rotate", "shear")},
        "augmentation.stain_jitter.strength": Flip(0.2, on("stain_jitter")),
        **{
            f"augmentation.color_jitter.{key}": Flip(given=on("color_jitter"))
            for key in ("brightness", "contrast", "saturation")
        },
        "augmentation.color_jitter.hue": Flip(0.2, on("color_jitter")),
        **{f"augmentation.intensity_jitter.{key}": Flip(given=on("intensity_jitter")) for key in ("contrast", "brightness")},
        "augmentation.channel_dropout": Flip(0.5),
        "augmentation.blur.kernel": Flip([7, 7], on("blur")),
        "augmentation.noise.std": Flip([0.1, 0.2], on("noise")),
    }
    keys = [key for key in keys_below(data, "augmentation") if key != "augmentation.random_offset"]
    assert dead_keys(observe, data, flips_for(keys, data, table, GENERIC)) == []


def test_augmentation_in_training_and_nowhere_else(data: dict[str, Any]) -> None:
    data = put(data, TILES)

    def observe(config: dict[str, Any], split: str = "train") -> Any:
        dataset = module_of(config).dataset(split)
        return [[dataset[index]["image"], dataset[index]["meta"]] for index in range(3)]

    flips = {"augmentation.random_offset": Flip(False), "augmentation": Flip(None)}
    assert dead_keys(observe, data, flips) == []
    assert len(dead_keys(lambda config: observe(config, "val"), data, flips)) == 2


def test_split(data: dict[str, Any], tmp_path: Path) -> None:
    def observe(config: dict[str, Any]) -> Any:
        return module_of(config).split

    module_of(put(data, {"split.seed": 5})).save_split(tmp_path / "split.csv")
    other = tmp_path / "other.csv"
    module_of(put(data, {"split.seed": 6})).save_split(other)
    table = {
        "split.scheme": Flip("leave_one_out"),
        "split.ratios": Flip([0.3, 0.3, 0.4]),
        "split.folds": Flip(3, {"split.scheme": "kfold"}),
        "split.fold": Flip(given={"split.scheme": "kfold"}),
        "split.val_group_by": Flip("field"),
        "split.file": Flip(str(other), {"split.scheme": "file", "split.file": str(tmp_path / "split.csv")}),
        "split.seed": Flip(13),
    }
    assert dead_keys(observe, data, flips_for(keys_below(data, "split"), data, table, GENERIC)) == []
    # Each of the schemes is a split of its own, or says why not.
    schemes = [observe(put(data, {"split.scheme": name})) for name in ("holdout", "kfold", "leave_one_out")]
    assert all(a != b for a, b in itertools.combinations(schemes, 2))
    assert dead_keys(observe, data, {"split.scheme": Flip("official", refuses=True)}) == []


def test_loader(data: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)  # pinning is only asked for where there is a GPU

    def observe(config: dict[str, Any]) -> Any:
        module = module_of(config, ("detection",))
        train, val = module.train_dataloader(), module.val_dataloader()
        shapes = [[loader.batch_size, loader.num_workers, loader.prefetch_factor, loader.pin_memory] for loader in (train, val)]
        return [shapes, list(train.sampler)]

    table = {
        "loader.eval_batch_size": Flip(3),
        "loader.num_workers": Flip(1),
        "loader.prefetch": Flip(3, {"loader.num_workers": 1}),
        "loader.priority_class": Flip("Healthy", {"loader.sampler": "class_aware"}),
        "loader.samples_per_epoch": Flip(5),
    }
    keys = [key for key in keys_below(data, "loader") if key not in MIXING]
    assert dead_keys(observe, data, flips_for(keys, data, table, GENERIC)) == []


MIXING = ("loader.mixing", "loader.source_weights", "loader.temperature")


def test_mixing(retinas: Path) -> None:
    """Keys that matter where there are several sources."""
    data = put(Plan.from_words(["task=idrid_mtl", f"data.root={retinas}"]).to_dict()["data"], {"geometry.size": [64, 64]})
    table = {
        "loader.source_weights": Flip({"idrid_grading": 1.0, "idrid_segmentation": 4.0}),
        "loader.temperature": Flip(3.0),
    }
    mixed = put(data, {"loader.mixing": "mixed", "loader.batch_size": 2})

    def observe(config: dict[str, Any]) -> Any:
        return list(module_of(config, ("grade", "lesions_ma")).train_dataloader().sampler)

    assert dead_keys(observe, mixed, flips_for(MIXING, mixed, table, GENERIC)) == []


def test_cache(data: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))

    def observe(config: dict[str, Any]) -> Any:
        for folder in ("home", "elsewhere"):
            shutil.rmtree(tmp_path / folder, ignore_errors=True)
        module_of(config).setup("fit")
        return sorted({path.relative_to(tmp_path).parts[0] for path in tmp_path.rglob("images.bin")})

    flips = {
        "cache.enabled": Flip(True),
        "cache.folder": Flip(str(tmp_path / "elsewhere"), {"cache.enabled": True}),
    }
    assert set(flips) == set(keys_below(data, "cache"))
    assert dead_keys(observe, data, flips) == []


def test_largest_loss(data: dict[str, Any], smears: Path, tmp_path: Path) -> None:
    damaged = copy_of(smears, tmp_path / "damaged")
    table = sorted(damaged.rglob("GT/*.txt"))[0]
    table.write_text(table.read_text().replace("Uninfected", "Gametocyte"))

    def observe(config: dict[str, Any]) -> Any:
        plan = Plan.from_words(
            ["task=malaria_mttl", f"data.root={config['root']}", f"data.largest_loss={config['largest_loss']}"]
        )
        return len(plan.records)

    one = put(data, {"root": str(damaged), "largest_loss": 1.0})
    assert observe(one) == len(Plan.from_words(["task=malaria_mttl", f"data.root={smears}"]).records)
    assert dead_keys(observe, one, {"largest_loss": Flip(0.01, refuses=True)}) == []


def test_every_shared_section_is_flipped() -> None:
    assert {key.partition(".")[0] for key in GENERIC} == {
        "geometry",
        "preprocessing",
        "augmentation",
        "split",
        "loader",
        "cache",
        "largest_loss",
    }


# -- mtl data ----------------------------------------------------------------------------------------------------------


def test_data_synth(tmp_path: Path) -> None:
    from mtl.cli.data import run

    def observe(config: dict[str, Any]) -> Any:
        shutil.rmtree(tmp_path / "drawn", ignore_errors=True)
        if config["occupied"]:
            (tmp_path / "drawn" / "one" / "Point Set").mkdir(parents=True)
        words = [f"{key}={value}" for key, value in config.items() if key != "occupied"]
        run(["synth", "malaria", *words])
        return tree(tmp_path / "drawn")

    config = {
        "output": tmp_path / "drawn" / "one", "patients": 2, "fields": 1, "seed": 0, "width": 96, "kind": "points",
        "overwrite": "true", "plugins": "[]", "occupied": False,
    }  # fmt: skip
    flips = {
        "output": Flip(tmp_path / "drawn" / "two"),
        "patients": Flip(1),
        "fields": Flip(2),
        "seed": Flip(1),
        "width": Flip(112),
        "kind": Flip("both"),
        "overwrite": Flip("false", {"occupied": True}, refuses=True),
        "plugins": Flip("[nowhere.py]", refuses=True),
    }
    assert set(flips) == set(verbs.SynthConfig.model_fields)
    assert dead_keys(observe, config, flips) == []


def test_data_synth_of_cells(tmp_path: Path) -> None:
    """Keys that mean nothing for single cells are refused, not ignored."""
    from mtl.cli.data import run

    def observe(config: dict[str, Any]) -> Any:
        shutil.rmtree(tmp_path / "drawn", ignore_errors=True)
        run(["synth", "malaria_cells", f"output={tmp_path / 'drawn'}", *(f"{key}={value}" for key, value in config.items())])
        return tree(tmp_path / "drawn")

    config = {"patients": 2, "fields": 2, "seed": 0, "width": "null", "kind": "null"}
    flips = {
        "patients": Flip(1),
        "fields": Flip(1),
        "seed": Flip(1),
        "width": Flip(512, refuses=True),
        "kind": Flip("points", refuses=True),
    }
    assert dead_keys(observe, config, flips) == []


def test_data_tool(smears: Path, tmp_path: Path) -> None:
    from mtl.cli.data import run

    one = copy_of(smears, tmp_path / "data", lambda path: "Polygon Set" in path.parts)

    def observe(config: dict[str, Any]) -> Any:
        shutil.rmtree(tmp_path / "shown", ignore_errors=True)
        run(["show", "malaria", *(f"{key}={value}" for key, value in config.items())])
        return sorted(tree(tmp_path / "shown"))

    config = {"output": tmp_path / "shown" / "one", "count": 1, "seed": 0, "data.root": one}
    flips = {
        "output": Flip(tmp_path / "shown" / "two"),
        "count": Flip(2),
        "seed": Flip(2),
        "data.root": Flip(copy_of(smears, tmp_path / "less", lambda path: "Point Set" in path.parts)),
    }
    assert {key.partition(".")[0] for key in flips} | {"plugins"} == set(verbs.DataToolConfig.model_fields)
    with pytest.raises(ConfigError, match="There is no plug-in"):
        observe({**config, "plugins": "[nowhere.py]"})
    flat = dict(config)  # the words of a command line: dotted keys are not nested here
    before = observe(flat)
    assert [key for key, flip in flips.items() if observe({**flat, key: flip.value}) == before] == []
