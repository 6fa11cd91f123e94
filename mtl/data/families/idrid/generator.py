"""Synthetic retinal photographs in the native layout of the `idrid` family."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mtl.core.errors import ConfigError
from mtl.data.families.idrid.painter import Retina, generate_ground, generate_retina
from mtl.data.families.writing import new_folder, write_image

SETS = ("A. Segmentation", "B. Disease Grading", "C. Localization")
PARTS = {"train": ("a. Training Set", "Training"), "test": ("b. Testing Set", "Testing")}
LESIONS = {"MA": "1. Microaneurysms", "HE": "2. Haemorrhages", "EX": "3. Hard Exudates", "SE": "4. Soft Exudates"}
FOLDERS = {**LESIONS, "OD": "5. Optic Disc"}
LEAST = 4  # photographs from which both sets have a training and a test part
PERSON, PHOTOGRAPH, PLAN = range(3)  # purposes of random streams


@dataclass(frozen=True)
class _Plan:
    """What one photograph shows and where its copies go; None is nowhere."""

    person: int
    number: int
    grade: int
    edema: int
    soft: bool
    segmented: str | None
    graded: str | None


def generate_idrid(output: Path, patients: int, fields: int, seed: int, width: int = 480, overwrite: bool = False) -> None:
    """Generate a data set of retinal photographs with masks (A), grades (B) and landmarks (C, the same files as B).

    Two fifths of the photographs, those with the most lesions, are in A. Two thirds of these are in B too, smaller and
    compressed harder; from 15 photographs on one of them is for training in A and for test in B. The eyes of a person are alike
    in colour and in how ill they are, and may fall into different parts: the native data set names no patients either.

    Args:
        output: New folder; receives the three sets.
        patients: Number of persons.
        fields: Photographs per person, right and left eye in turn.
        seed: Of everything random.
        width: Of the photographs in A, in pixels; those in B have three quarters of it.
        overwrite: Replace an earlier data set at `output`.
    """
    problems = [
        f"`{name}` is {value}; expected at least {least}."
        for name, value, least in (("patients", patients, 1), ("fields", fields, 1), ("width", width, 64), ("seed", seed, 0))
        if value < least
    ]
    if not problems and patients * fields < LEAST:
        problems.append(
            f"`patients` x `fields` is {patients * fields}; expected at least {LEAST} photographs, so that there is training "
            "and test data with masks and with grades."
        )
    if problems:
        raise ConfigError(problems)
    with new_folder(Path(output), overwrite) as folder:
        for part, _ in PARTS.values():
            for name in FOLDERS.values():
                (folder / SETS[0] / "2. All Segmentation Groundtruths" / part / name).mkdir(parents=True)
            for name in SETS:
                (folder / name / "1. Original Images" / part).mkdir(parents=True)
        writer = _Writer(folder, width)
        for plan in _plans(patients, fields, seed):
            retina = generate_retina(
                np.random.default_rng([seed, PHOTOGRAPH, plan.person, plan.number]),
                width,
                generate_ground(np.random.default_rng([seed, PERSON, plan.person])),
                grade=plan.grade,
                edema=plan.edema,
                soft=plan.soft,
                left=plan.number % 2 == 1,
            )
            writer.add(retina, plan)
        writer.write_tables()


def _plans(patients: int, fields: int, seed: int) -> list[_Plan]:
    """Decide how ill each eye is and where its photograph goes, so that even small sets have every grade and part."""
    count = patients * fields
    rng = np.random.default_rng([seed, PLAN])
    illness = np.repeat(rng.random(patients), fields) + rng.normal(0, 0.12, count)
    ranked = np.argsort(illness).tolist()
    grades, edemas = {}, {}
    for rank, index in enumerate(ranked):
        grades[index] = rank * 5 // count
        edemas[index] = (2, 1, 2, 0, 2)[rank % 5] if grades[index] >= 2 else 0
    # The most ill, those with hard exudates first.
    wanted = max(2, round(0.4 * count))
    order = sorted(ranked, key=lambda index: (edemas[index] > 0, illness[index]), reverse=True)
    segmented = sorted(order[:wanted], key=ranked.index)
    others = [index for index in ranked if index not in segmented]
    parts = {index: "test" if place % 4 == 1 else "train" for place, index in enumerate(segmented)}
    parts |= {index: "test" if place % 4 == 2 else "train" for place, index in enumerate(others)}
    plans = []
    for index in range(count):
        place = segmented.index(index) if index in segmented else None
        plans.append(
            _Plan(
                person=index // fields,
                number=index % fields,
                grade=grades[index],
                edema=edemas[index],
                soft=place is not None and place % 4 in (1, 2),
                segmented=None if place is None else parts[index],
                graded=None if place is not None and place % 3 == 0 else "test" if place == 2 and count >= 15 else parts[index],
            )
        )
    return plans


class _Writer:
    """Writes photographs and masks as they come, and the tables at the end."""

    def __init__(self, folder: Path, width: int) -> None:
        self.folder, self.width = folder, width
        self.grades: dict[str, list[tuple[str, int, int]]] = {part: [] for part in PARTS}
        self.points: dict[str, list[tuple[str, Retina]]] = {part: [] for part in PARTS}
        self.segmented = dict.fromkeys(PARTS, 0)
        self.has_alpha = False

    def add(self, retina: Retina, plan: _Plan) -> None:
        if plan.segmented is not None:
            self.segmented[plan.segmented] += 1
            # Numbers go on from training to test here, but start again in B and C.
            number = self.segmented[plan.segmented] + (54 if plan.segmented == "test" else 0)
            self._segmentation(retina, plan.segmented, f"IDRiD_{number:02d}")
        if plan.graded is not None:
            name = f"IDRiD_{len(self.grades[plan.graded]) + 1:03d}"
            self._copy(retina, plan.graded, name)
            self.grades[plan.graded].append((name, plan.grade, plan.edema))
            self.points[plan.graded].append((name, retina))

    def _segmentation(self, retina: Retina, part: str, name: str) -> None:
        home, part_folder = self.folder / SETS[0], PARTS[part][0]
        write_image(home / "1. Original Images" / part_folder / f"{name}.jpg", retina.image)
        for code, mask in retina.masks.items():
            path = home / "2. All Segmentation Groundtruths" / part_folder / FOLDERS[code] / f"{name}_{code}.tif"
            with_alpha = code == "EX" and part == "test" and not self.has_alpha
            self.has_alpha |= with_alpha
            _write_mask(path, mask, "RGBA" if with_alpha else {"HE": "1", "OD": "L"}.get(code, "P"))

    def _copy(self, retina: Retina, part: str, name: str) -> None:
        import cv2

        width = round(0.75 * self.width)
        height = round(width * retina.image.shape[0] / retina.image.shape[1])
        small = cv2.resize(retina.image, (width, height), interpolation=cv2.INTER_AREA)
        path = self.folder / SETS[1] / "1. Original Images" / PARTS[part][0] / f"{name}.jpg"
        write_image(path, small, quality=80)
        (self.folder / SETS[2] / "1. Original Images" / PARTS[part][0] / path.name).write_bytes(path.read_bytes())

    def write_tables(self) -> None:
        """Write the tables as the native ones are: spaces in headers, empty columns and rows, CRLF."""
        for part, (_, word) in PARTS.items():
            empty = "," * 9 if part == "train" else ""
            rows = [f"{name},{grade},{edema}{empty}" for name, grade, edema in self.grades[part]]
            name = f"{'a' if part == 'train' else 'b'}. IDRiD_Disease Grading_{word} Labels.csv"
            header = f"Image name,Retinopathy grade,Risk of macular edema {empty}"
            _write_table(self.folder / SETS[1] / "2. Groundtruths" / name, [header, *rows])
            for folder, place, key in (
                ("1. Optic Disc Center Location", f"IDRiD_OD_Center_{word} Set_Markups.csv", "disc"),
                ("2. Fovea Center Location", f"IDRiD_Fovea_Center_{word} Set_Markups.csv", "fovea"),
            ):
                centres = [(name, getattr(retina, key)) for name, retina in self.points[part]]
                rows = [f"{name},{x * 0.75:.1f},{y * 0.75:.1f},,,,,,," for name, (x, y) in centres]
                lines = ["Image No,X- Coordinate,Y - Coordinate,,,,,,,", *rows, "," * 9, "," * 9]
                _write_table(self.folder / SETS[2] / "2. Groundtruths" / folder / place, lines)


def _write_mask(path: Path, mask: np.ndarray, mode: str) -> None:
    """Write a mask as one of the kinds of TIFF that occur: 1 bit, grey, palette, or red with an opaque alpha channel."""
    from PIL import Image

    if mode == "RGBA":
        pixels = np.zeros((*mask.shape, 4), np.uint8)
        pixels[mask, 0] = 255
        pixels[..., 3] = 255
        picture = Image.fromarray(pixels)
    else:
        picture = Image.fromarray(mask.astype(np.uint8) * (1 if mode == "P" else 255))
        if mode == "P":
            picture.putpalette([0, 0, 0, 255, 0, 0])
        elif mode == "1":
            picture = picture.convert("1")
    picture.save(path, compression="packbits")


def _write_table(path: Path, lines: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("".join(f"{line}\r\n" for line in lines).encode())
