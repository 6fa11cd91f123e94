"""Synthetic skin images in the native layout of the `skin` family."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from mtl.core.errors import ConfigError, unknown
from mtl.data.families.skin.painter import DIAGNOSES, SKIN_TYPES, TONES, generate_lesion, photograph
from mtl.data.families.writing import new_folder, write_image

KINDS = ("attributes", "ids")
LEAST = 3  # patients, so that each part has one
PERSON, LESION, PICTURE = range(3)  # purposes of random streams


def generate_skin(
    output: Path, patients: int, fields: int, seed: int, width: int = 256, kind: str = "attributes", overwrite: bool = False
) -> None:
    """Generate a data set of skin lesions: two pictures of each, masks for every fourth lesion of a part only.

    Three fifths of the patients are for training, the others validate and test (`splits.json`). Not everyone's age and sex are
    known.

    Args:
        output: New folder; receives images, masks and tables.
        patients: Number of patients.
        fields: Pictures per patient.
        seed: Of everything random.
        width: Of the pictures in pixels.
        kind: What `labels.json` holds: `attributes`, a diagnosis by name and a skin type by number (unknown for every fifth
            patient), or `ids`, the number of the diagnosis.
        overwrite: Replace an earlier data set at `output`.
    """
    least = (("patients", patients, LEAST), ("fields", fields, 1), ("width", width, 32), ("seed", seed, 0))
    problems = [f"`{name}` is {value}; expected at least {lowest}." for name, value, lowest in least if value < lowest]
    if kind not in KINDS:
        problems.append(unknown("kind", kind, KINDS, "kind"))
    if problems:
        raise ConfigError(problems)
    with new_folder(Path(output), overwrite) as folder:
        for name in ("images", "masks"):
            (folder / name).mkdir()
        labels: dict[str, object] = {}
        parts: dict[str, list[str]] = {part: [] for part in ("train", "val", "test")}
        rows = ["image,age_approximate,sex,fitzpatrick,lesion_id,patient_id"]
        for patient, (part, first_lesion) in enumerate(_places(patients, fields)):
            rng = np.random.default_rng([seed, PERSON, patient])
            tone, age, sex = int(rng.integers(1, TONES + 1)), 5 * int(rng.integers(3, 18)), ("female", "male")[patient % 2]
            # Says nothing about the diagnosis, and three patients in a row have all types.
            skin_type = (patient + patient // len(DIAGNOSES)) % len(SKIN_TYPES)
            about = f"{'unknown' if patient % 7 == 6 else age},{'' if patient % 6 == 5 else sex},{tone}"
            for number in range(fields):
                lesion = number // 2
                diagnosis = (patient + lesion) % len(DIAGNOSES)
                generated = generate_lesion(np.random.default_rng([seed, LESION, patient, lesion]), DIAGNOSES[diagnosis])
                light = np.random.default_rng([seed, PICTURE, patient, number])
                image, mask = photograph(light, generated, width, tone, SKIN_TYPES[skin_type])
                name = f"SKIN_{patient:03d}_{number:02d}"
                write_image(folder / "images" / f"{name}.jpg", image)
                if (first_lesion + lesion) % 4 == 1:
                    write_image(folder / "masks" / f"{name}.png", np.repeat(255 * mask[..., None].astype(np.uint8), 3, axis=2))
                known = None if patient % 5 == 4 else skin_type
                labels[f"{name}.jpg"] = diagnosis if kind == "ids" else {"diagnosis": DIAGNOSES[diagnosis], "skin_type": known}
                parts[part].append(f"{name}.jpg")
                rows.append(f"{name}.jpg,{about},L{patient:03d}_{lesion},P{patient:03d}")
        classes = {"diagnosis": dict(enumerate(DIAGNOSES)), "skin_type": dict(enumerate(SKIN_TYPES))}
        tables = {"labels": labels, "splits": parts, "classes": classes["diagnosis"] if kind == "ids" else classes}
        for name, content in tables.items():
            (folder / f"{name}.json").write_text(json.dumps(content, indent=1), encoding="utf-8")
        (folder / "metadata.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")


def _places(patients: int, fields: int) -> list[tuple[str, int]]:
    """Return per patient the part, and the number of the first lesion within that part."""
    validate = max(1, round(0.2 * patients))
    test = max(1, round(0.2 * patients))
    parts = ["train"] * (patients - validate - test) + ["val"] * validate + ["test"] * test
    lesions = -(-fields // 2)
    return [(part, lesions * (number - parts.index(part))) for number, part in enumerate(parts)]
