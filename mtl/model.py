"""The network: one encoder, the necks that active heads ask for, and the heads. No Lightning, no Hydra."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from mtl.core.errors import ConfigError
from mtl.core.parts import ENCODER, covers, neck_chain, part_of
from mtl.core.registry import ADAPTERS, ENCODERS, HEADS, NECKS
from mtl.core.task import TaskSpec
from mtl.encoders.base import adapter_parameters, parameters_of_task
from mtl.heads.base import Head, Output, Prediction
from mtl.imaging.preprocessing import Preprocessing
from mtl.kinds.base import first_of
from mtl.layers import attached_zero, floating, take_rows

Rows = Mapping[str, Sequence[int]]  # by task, positions in the batch, ascending


class MultiTaskModel(nn.Module):
    """Composes an encoder, necks and heads.

    With shared features the encoder sees every image of the batch once; with per-task adapters it computes the features of
    each task for the rows of that task. A head, and a neck of its own, sees the rows of its task; a neck that several heads
    read sees those of any of them. Where a norm takes statistics of the batch, it takes them of these rows.

    Args:
        encoder: Gives `channels`, `strides`, `per_task` and NCHW maps, finest first.
        necks: By name: a neck, or a `ModuleDict` with one copy per task where the neck is not shared.
        heads: By task, in the order of `tasks`.
        chains: By task, the necks between the encoder and its head, in the order in which features pass through them.
        preprocessing: What must be done to an image before it comes in.
        config: The plain sections this model was built from (`to_config`).
    """

    def __init__(
        self,
        encoder: nn.Module,
        necks: dict[str, nn.Module],
        heads: dict[str, Head],
        chains: dict[str, list[str]],
        preprocessing: Preprocessing,
        config: dict[str, Any],
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.necks = nn.ModuleDict(necks)
        self.heads = nn.ModuleDict(heads)
        self.chains = chains
        self.preprocessing = preprocessing
        self._config = config
        self._trainable = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        self._resting: list[nn.Module] = []

    @classmethod
    def from_config(cls, config: dict[str, Any], load_weights: bool = True) -> MultiTaskModel:
        """Build from plain sections.

        Args:
            config: `tasks`, `specs` (`TaskSpec.to_dict()` each), `backbone`, `peft`, `necks`, `heads`, and `preprocessing`
                (`geometry`, `clahe`, `mean`, `std`; null mean and std take the encoder's).
            load_weights: False when a checkpoint's state follows, so that no weight file is looked for.

        Raises:
            ConfigError: Parts do not fit together.
        """
        specs = {values["name"]: TaskSpec.from_dict(values) for values in config["specs"]}
        tasks = config["tasks"]
        encoder = ENCODERS.build(config["backbone"], load_weights, where="backbone")
        if config.get("peft"):
            ADAPTERS.build(config["peft"], encoder, list(tasks), where="peft")
        chains = {task: neck_chain(config["heads"][task].get("features", ENCODER), config["necks"]) for task in tasks}
        necks = _build_necks(config["necks"], encoder, chains)
        heads = {}
        for task in tasks:
            source = _neck_of(necks[chains[task][-1]], task) if chains[task] else encoder
            own = {key: value for key, value in config["heads"][task].items() if key != "features"}
            heads[task] = HEADS.build(own, specs[task], source.channels, source.strides, where=f"heads.{task}")
        stored = config["preprocessing"]
        preprocessing = Preprocessing.from_config(stored["geometry"], stored, encoder.normalization)
        if len(preprocessing.mean) != len(encoder.normalization["mean"]):
            raise ConfigError(
                f"`data.preprocessing.mean` has {len(preprocessing.mean)} values but the encoder takes "
                f"{len(encoder.normalization['mean'])} channels. Give one mean and one std per channel."
            )
        kept: dict[str, Any] = {
            key: config[key] for key in ("tasks", "specs", "backbone", "peft", "necks", "heads") if key in config
        }
        return cls(encoder, necks, heads, chains, preprocessing, {**kept, "preprocessing": preprocessing.to_dict()})

    def to_config(self) -> dict[str, Any]:
        """Return what `from_config` needs to build this model again (architecture, not weights)."""
        return self._config

    @property
    def specs(self) -> dict[str, TaskSpec]:
        """Specs of the tasks this model serves, in order."""
        return {task: head.spec for task, head in self.heads.items()}  # type: ignore[misc]

    def train_only(self, tasks: Collection[str], resting: Collection[str] = ()) -> None:
        """Let the heads of some tasks and what feeds them train, except for resting parts, and everything else rest.

        What rests gets no gradient and stays in evaluation mode, so that its norm statistics do not move either. What was
        frozen when the model was built remains so; a later call starts anew from there.

        Args:
            tasks: Tasks whose heads train.
            resting: Parts that rest although they feed these heads, named as in `optimizer.parts`.
        """
        fed = {neck for task in tasks for neck in self.chains[task]}
        own = {f"neck.{name}": (neck, name in fed) for name, neck in self.necks.items()}
        own |= {f"head.{task}": (head, task in tasks) for task, head in self.heads.items()}
        own["backbone"] = (self.encoder, True)
        still = {part for part, (_, used) in own.items() if not used or any(covers(name, part) for name in resting)}
        self._resting = [own[part][0] for part in still]
        # Copies of a neck that is not shared rest with their heads.
        copies = {
            f"necks.{name}.{task}" for name, neck in self.necks.items() if isinstance(neck, nn.ModuleDict) for task in neck
        }
        copies = {name for name in copies if name.rpartition(".")[2] not in tasks}
        self._resting += [self.get_submodule(name) for name in sorted(copies)]
        adapters = {id(parameter) for parameter in adapter_parameters(self)}
        adapters_rest = any(covers(name, "adapters") for name in resting)
        for name, parameter in self.named_parameters():
            rests = adapters_rest if id(parameter) in adapters else part_of(name) in still
            rests = rests or any(name.startswith(f"{copy}.") for copy in copies)
            parameter.requires_grad_(name in self._trainable and not rests)
        self.train(self.training)

    def shared_and_own(self, tasks: Collection[str]) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """Sort what trains now into parameters that serve several of some tasks and those that serve one.

        Shared are the encoder, except for adapters of which each task has its own, and necks that several of the heads read.
        """
        readers = Counter(name for task in tasks for name in self.chains[task])
        common = [neck for name, neck in self.necks.items() if readers[name] > 1 and not isinstance(neck, nn.ModuleDict)]
        private = {id(parameter) for parameter in adapter_parameters(self.encoder)} if self.encoder.per_task else set()
        several = [parameter for part in (self.encoder, *common) for parameter in part.parameters()] if len(tasks) > 1 else []
        shared = {id(parameter) for parameter in several} - private
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        return [p for p in trained if id(p) in shared], [p for p in trained if id(p) not in shared]

    def train(self, mode: bool = True) -> MultiTaskModel:
        """Switch the mode; what rests stays in evaluation mode."""
        super().train(mode)
        for module in self._resting:
            module.eval()
        return self

    def forward(
        self, images: Tensor, tasks: Collection[str] | None = None, rows: Rows | None = None
    ) -> dict[str, Output]:  # fmt: skip
        """Compute the heads' raw outputs.

        Args:
            images: [B, C, H, W] float32, normalised.
            tasks: Whose heads are wanted; None is all.
            rows: By task, for which rows of the batch; None is all rows of all tasks.

        Returns:
            By task, what the head's `loss` and `decode` take, of the rows of that task. A task without rows is missing,
            except where norms are synchronised: it then runs on the first row, and nobody looks at the output.
        """
        every = tuple(range(len(images)))
        wanted = {task: every if rows is None else tuple(rows[task]) for task in self.heads if tasks is None or task in tasks}
        if self.training and any(isinstance(module, nn.SyncBatchNorm) for module in self.modules()):
            # Processes exchange statistics: one that left a part out would keep the others waiting.
            wanted = {task: asked or (0,) for task, asked in wanted.items()}
        wanted = {task: asked for task, asked in wanted.items() if asked}
        features = Features(self, wanted, images) if wanted else None
        size = (images.shape[-2], images.shape[-1])
        return {task: self.heads[task](features.read_by(task), size) for task in wanted} if features else {}

    def unread(self, task: str, tasks: Collection[str], rows: Rows, outputs: Mapping[str, Output]) -> Tensor:
        """Return 0 for a task without rows, for the gradients of what feeds it and takes no part in a pass: zeros, not None.

        DistributedDataParallel waits for a gradient of every parameter that trains.

        Args:
            task: A task without rows.
            tasks: What the pass was for.
            rows: As in `forward`.
            outputs: What `forward` returned.
        """
        running = [other for other in tasks if rows[other]]
        used = {key for other in running for key in self.path(other)}
        idle: list[Tensor] = [*self.heads[task].parameters(), *floating(outputs.get(task))]
        for key in self.path(task):
            idle += [] if key in used else self.necks.get_submodule(key).parameters()
        if not running:
            idle += self.encoder.parameters()
        elif self.encoder.per_task:
            idle += parameters_of_task(self.encoder, task)
        return attached_zero(idle)

    def path(self, task: str) -> list[str]:
        """Return the necks between the encoder and a head: `<neck>` where it is shared, `<neck>.<task>` where it is a copy."""
        return [f"{name}.{task}" if isinstance(self.necks[name], nn.ModuleDict) else name for name in self.chains[task]]

    def decode(
        self, outputs: dict[str, Output], boxes: Mapping[str, list[Tensor]] | None = None
    ) -> dict[str, list[Prediction]]:
        """Turn raw outputs into predictions in network pixels.

        Args:
            outputs: From `forward`, of some or all tasks.
            boxes: By task whose head looks at boxes (RoI classification), per row, [N, 4]; None takes the detected ones.
                Without either, such a head predicts nothing and is left out.
        """
        predictions: dict[str, list[Prediction]] = {}
        heads: dict[str, Any] = {task: head for task, head in self.heads.items() if task in outputs}
        for task in sorted(heads, key=lambda name: bool(heads[name].needs_boxes)):  # detections first
            head = heads[task]
            if not head.needs_boxes:
                predictions[task] = head.decode(outputs[task])
                continue
            found = self._detected(predictions) if boxes is None else boxes[task]
            if found is not None:
                predictions[task] = head.decode(outputs[task], boxes=found)
        return predictions

    def predict(self, images: Tensor) -> dict[str, list[Prediction]]:
        """Return `decode(forward(images))`."""
        return self.decode(self(images))

    def _detected(self, predictions: dict[str, list[Prediction]]) -> list[Tensor] | None:
        task = first_of(self.specs, predictions, "boxes")
        return None if task is None else [prediction["boxes"] for prediction in predictions[task]]


class Features:
    """The maps of one forward pass, each made once, when a head first reads it.

    Args:
        model: Whose encoder and necks.
        wanted: Rows by task.
        images: As in `MultiTaskModel.forward`.
    """

    def __init__(self, model: MultiTaskModel, wanted: Rows, images: Tensor) -> None:
        self.model, self.wanted = model, wanted
        self._needed: dict[str, set[int]] = {}
        for task, rows in wanted.items():
            for key in model.path(task):
                self._needed.setdefault(key, set()).update(rows)
        self._rows: dict[str, tuple[int, ...]] = {}
        self._maps: dict[tuple[str, tuple[int, ...]], tuple[Tensor, ...]] = {}
        encoder: Any = model.encoder
        if encoder.per_task:
            for task, maps in encoder.for_tasks(images, wanted).items():
                self._keep(f"{ENCODER}.{task}", tuple(wanted[task]), maps)
        else:
            self._keep(ENCODER, tuple(range(len(images))), encoder(images))

    def read_by(self, task: str) -> tuple[Tensor, ...]:
        """Return the maps that a head reads, of its rows."""
        own = f".{task}" if self.model.encoder.per_task else ""  # a neck that tasks share sees other features for each
        source = ENCODER + own
        for key in self.model.path(task):
            made = key + own
            if made not in self._rows:
                rows = tuple(sorted(self._needed[key])) if not own else tuple(self.wanted[task])
                self._keep(made, rows, self.model.necks.get_submodule(key)(self._of(source, rows)))
            source = made
        return self._of(source, tuple(self.wanted[task]))

    def _keep(self, source: str, rows: tuple[int, ...], maps: tuple[Tensor, ...]) -> None:
        self._rows[source], self._maps[source, rows] = rows, maps

    def _of(self, source: str, rows: tuple[int, ...]) -> tuple[Tensor, ...]:
        """Return the maps of some rows; tasks with the same rows share them."""
        if (source, rows) not in self._maps:
            made = self._rows[source]
            places = [made.index(row) for row in rows]
            self._maps[source, rows] = tuple(take_rows(level, places) for level in self._maps[source, made])
        return self._maps[source, rows]


def _build_necks(sections: dict[str, dict[str, Any]], encoder: nn.Module, chains: dict[str, list[str]]) -> dict[str, nn.Module]:
    """Build the necks that heads read, in the order of their sections.

    A neck is one module for all its heads or, with `shared: false`, a copy for each of them.

    Args:
        sections: Settings by name.
        encoder: What the first neck of a chain reads.
        chains: By task, its necks from the encoder on.
    """
    built: dict[str, nn.Module] = {}

    def build(name: str, source: nn.Module) -> nn.Module:
        own = {key: value for key, value in sections[name].items() if key not in ("shared", "features")}
        try:
            neck: nn.Module = NECKS.build(own, source.channels, source.strides, where=f"necks.{name}")
        except ConfigError as error:  # a neck does not know its name
            raise ConfigError([problem.replace("`neck.", f"`necks.{name}.") for problem in error.problems]) from None
        return neck

    for task, chain in chains.items():
        source = encoder
        for name in chain:
            if sections[name].get("shared", True):
                if name not in built:
                    built[name] = build(name, source)
            else:
                copies = built.setdefault(name, nn.ModuleDict())
                assert isinstance(copies, nn.ModuleDict)
                copies[task] = build(name, source)
            source = _neck_of(built[name], task)
    return {name: built[name] for name in sections if name in built}


def _neck_of(neck: nn.Module, task: str) -> Any:
    return neck[task] if isinstance(neck, nn.ModuleDict) else neck
