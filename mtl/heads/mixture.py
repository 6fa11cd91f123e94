"""A mixture of experts around any head."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mtl.core.errors import ConfigError
from mtl.core.registry import HEADS
from mtl.core.task import TaskSpec
from mtl.heads.base import Head, Output, Prediction
from mtl.layers import attached_zero, in_float32, pooled

# Keeps shares finite where all scores are 0, as published.
EPS = 1e-6
# An expert, by position, and the rows of the batch it runs on; None is all of them.
Plan = list[tuple[int, Tensor | None]]


@HEADS.register("mixture")
class MixtureHead(Head):
    """Several complete heads (experts) whose outputs are averaged with weights that a gate computes per image.

    The gate is a linear layer on the mean of the last map. Routing turns its scores g into weights that sum to 1:

    - dense: g / sum(g).
    - top_p: the experts with the highest scores, as few as needed for these to sum to `top_p`, all where that is never reached;
      the kept scores are divided by their sum. With a sigmoid gate the raw scores are summed, as published, so `top_p` may
      exceed 1.
    - top_k: likewise with the k highest scores (Shazeer et al. 2017, https://arxiv.org/abs/1701.06538, without noise).

    An expert selected alone has the weight 1 whatever its score, so with k = 1 only auxiliary terms teach the gate.

    Sparse routing saves computation. In training an expert that no labelled image of the batch selected does not run; one that
    some selected runs on all of these, which gives its BatchNorm the same statistics as if nothing were saved. (Statistics of
    an expert that did not run stay as they are.) In evaluation mode an expert runs on the images that selected it. Outputs and
    gradients equal those of running everything and masking the weights. With SyncBatchNorm, whose processes wait for each
    other, every expert runs in training.

    All floating-point tensors of the output that have the batch as first dimension are averaged; everything else is taken from
    the first expert that ran. Loss and decoding are those of the experts, applied to the average.

    Auxiliary terms enter the loss in training mode where their weight is not 0. With E experts, scores g
    and shares q = g / sum(g):

    - l1: mean of g.
    - load_balance: (1/E) sum_e (1/E) (log(1/E) - log p_e), p the mean of g over the batch.
    - entropy: minus the mean entropy of q.
    - importance: squared coefficient of variation of q summed over the batch (Shazeer et al. 2017).
    - load: E sum_e f_e P_e, f_e the share of images that selected e, P the mean of q over the batch (Fedus et al. 2021,
      https://arxiv.org/abs/2101.03961). Constant while routing is dense.

    The first three are published together with a sigmoid gate and a weight of 1 each. Mind what they ask for: l1 and
    load_balance together are lowest where every score is 1/E, and entropy is lowest at equal shares too, so all three pull
    the mixture towards a plain average of its experts.

    Args:
        spec: The task.
        channels: Channels of the maps.
        strides: Strides of the maps.
        expert: The head to copy (a name and its keys); `features` is ignored.
        experts: Number of copies, each with its own random start.
        gate: `softmax` scores compete, `sigmoid` scores are independent (published).
        routing: See above.
        top_p: Sum of scores at which `top_p` stops.
        top_k: Number of experts that `top_k` keeps.
        dense_until: Share of training during which routing stays dense.
        l1_weight: Weight of the term l1.
        load_balance_weight: Weight of the term load_balance.
        entropy_weight: Weight of the term entropy.
        importance_weight: Weight of the term importance.
        load_weight: Weight of the term load.

    Attributes:
        sparse: Whether routing is sparse by now: a bool buffer, so that a checkpoint predicts as its epoch did.
    """

    kind = "any"
    mixable = False
    sparse: Tensor

    def __init__(
        self,
        spec: TaskSpec,
        channels: tuple[int, ...],
        strides: tuple[int, ...],
        *,
        expert: dict,
        experts: int = 3,
        gate: Literal["sigmoid", "softmax"] = "softmax",
        routing: Literal["dense", "top_p", "top_k"] = "dense",
        top_p: float = 0.8,
        top_k: int = 2,
        dense_until: float = 0.0,
        l1_weight: float = 0.0,
        load_balance_weight: float = 0.0,
        entropy_weight: float = 0.0,
        importance_weight: float = 0.0,
        load_weight: float = 0.0,
    ) -> None:
        super().__init__(spec, channels, strides)
        where = f"heads.{spec.name}"
        _check_expert(expert, spec, f"{where}.expert")
        if experts < 1:
            raise ConfigError(f"`{where}.experts={experts}`: expected at least 1.")
        if routing == "top_k" and not 1 <= top_k <= experts:
            raise ConfigError(f"`{where}.top_k={top_k}`: expected 1 to {experts}, the number of experts.")
        if routing == "top_p" and top_p <= 0:
            raise ConfigError(f"`{where}.top_p={top_p}`: expected a sum of scores above 0, for example 0.8.")
        if not 0 <= dense_until <= 1:
            raise ConfigError(f"`{where}.dense_until={dense_until}`: expected a share of training, 0 to 1.")
        own = {key: value for key, value in expert.items() if key != "features"}
        self.experts = nn.ModuleList(HEADS.build(own, spec, channels, strides, where=f"{where}.expert") for _ in range(experts))
        self.kind = self.lead.kind
        self.looks_at_targets = self.lead.looks_at_targets
        self.gate = nn.Linear(channels[-1], experts)
        self.competing = gate == "softmax"
        self.routing = routing
        self.top_p = top_p
        self.top_k = top_k
        self.dense_until = dense_until
        self.auxiliary_weights = {
            "l1": l1_weight,
            "load_balance": load_balance_weight,
            "entropy": entropy_weight,
            "importance": importance_weight,
            "load": load_weight,
        }
        self.register_buffer("sparse", torch.tensor(False))
        self.set_progress(0.0)

    @property
    def lead(self) -> Head:
        """The expert whose loss and decoding serve the mixture; neither uses what experts learn."""
        return self.experts[0]  # type: ignore[return-value]

    def set_progress(self, progress: float) -> None:
        """Switch to sparse routing once `dense_until` is reached."""
        # A copy in Python spares training a wait for the device. Only the trained module itself uses it: others, such as an
        # average of weights, may be given the buffer alone.
        self._sparse = self.routing != "dense" and progress >= self.dense_until
        self.sparse.fill_(self._sparse)

    def observe_targets(self, targets: Sequence[Any]) -> None:
        """Show the targets to every expert."""
        for expert in self.experts:
            expert.observe_targets(targets)  # type: ignore[operator]

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        self._sparse = bool(self.sparse)

    # -- forward -------------------------------------------------------------------------------------------------------

    def forward(self, features: tuple[Tensor, ...], image_size: tuple[int, int]) -> Output:
        """Run the experts that are needed and average.

        Returns:
            The experts' output, `gate` [B, E] scores in [0, 1] and `weights` [B, E], 0 where an expert was not selected.
        """
        logits = in_float32(self.gate, pooled(features[-1]))
        scores = logits.softmax(dim=1) if self.competing else logits.sigmoid()
        if self.routing == "dense" or (self.training and not self._sparse):
            weights = scores / (scores.sum(dim=1, keepdim=True) + EPS)
            plan: Plan = [(index, None) for index in range(len(self.experts))]
        else:
            kept = self.select(scores.detach()) | ~self.sparse
            chosen = scores * kept
            weights = chosen / (chosen.sum(dim=1, keepdim=True) + EPS)
            plan = self._plan(kept)
            running = {index for index, _ in plan}
            for index, expert in enumerate(self.experts):
                if self.training and index not in running:
                    # A gradient of 0 instead of none, for which DistributedDataParallel would wait.
                    weights = weights + attached_zero(expert.parameters())
        outputs = [
            self.experts[index](features if rows is None else tuple(level[rows] for level in features), image_size)
            for index, rows in plan
        ]
        return {**average(outputs, weights, plan), "gate": scores, "weights": weights}

    def select(self, scores: Tensor) -> Tensor:
        """Return which experts sparse routing keeps, [B, E] bool; at least one per row."""
        ranked, order = scores.sort(dim=1, descending=True, stable=True)
        if self.routing == "top_k":
            first = torch.arange(scores.shape[1], device=scores.device).expand_as(order) < self.top_k
        else:
            # What comes before each rank, as plain sums: cumsum has no deterministic form on every device.
            earlier = torch.ones(scores.shape[1], scores.shape[1], device=scores.device).triu(diagonal=1)
            first = ~((ranked.unsqueeze(2) * earlier).sum(dim=1) >= self.top_p)  # not "<", which drops all where a score is NaN
        return torch.zeros_like(first).scatter(1, order, first)

    def _plan(self, kept: Tensor) -> Plan:
        """Return which expert runs on which rows; the only place that waits for the device."""
        on_host = kept.cpu()
        if self.training:
            # With SyncBatchNorm, processes whose images select different experts would wait for each other forever.
            everyone = any(isinstance(module, nn.SyncBatchNorm) for module in self.experts.modules())
            return [(index, None) for index, used in enumerate(on_host.any(dim=0).tolist()) if used or everyone]
        plan: Plan = []
        for index, column in enumerate(on_host.unbind(dim=1)):
            rows = column.nonzero().flatten()
            if len(rows):
                plan.append((index, None if len(rows) == len(column) else rows.to(kept.device)))
        return plan

    # -- loss, decoding, monitoring ------------------------------------------------------------------------------------

    def loss(self, output: Output, target: Any) -> dict[str, Tensor]:
        """Compute the experts' own loss of the average and, in training mode, the auxiliary terms."""
        terms = self.lead.loss(output, target)
        return {**terms, **self.auxiliary(output)} if self.training else terms

    def auxiliary(self, output: Output) -> dict[str, Tensor]:
        """Compute the weighted auxiliary terms; only those whose weight is not 0."""
        active = {name: weight for name, weight in self.auxiliary_weights.items() if weight}
        if not active:
            return {}
        scores = output["gate"]
        shares = scores / (scores.sum(dim=1, keepdim=True) + EPS)
        selected = (output["weights"].detach() > 0).float().mean(dim=0)
        return {name: weight * AUXILIARY[name](scores, shares, selected) for name, weight in active.items()}

    def decode(self, output: Output, **context: Any) -> list[Prediction]:
        """Return the experts' prediction from the average."""
        return self.lead.decode(output, **context)

    @property
    def monitored(self) -> tuple[str, ...]:
        """Names of what `monitor` returns."""
        return (*(f"expert_{index + 1}" for index in range(len(self.experts))), "experts_used")

    def monitor(self, output: Output) -> dict[str, Tensor]:
        """Compute the mean weight of every expert, 0 where it was not selected, and the mean number of selected experts."""
        weights = output["weights"].detach()
        number = (weights > 0).sum(dim=1).to(weights).mean()
        return dict(zip(self.monitored, [*weights.mean(dim=0).unbind(), number], strict=True))


def average(values: list[Any], weights: Tensor, plan: Plan) -> Any:
    """Average the outputs of experts, looking into dicts, lists and tuples.

    Args:
        values: One output per expert that ran, all of one form.
        weights: [B, E].
        plan: Which expert gave each output, and for which rows.
    """
    first, (_, rows) = values[0], plan[0]
    if isinstance(first, dict):
        return {key: average([value[key] for value in values], weights, plan) for key in first}
    if isinstance(first, list | tuple):
        return type(first)(average(list(entries), weights, plan) for entries in zip(*values, strict=True))
    own_rows = len(weights) if rows is None else len(rows)
    if not isinstance(first, Tensor) or not first.is_floating_point() or first.shape[:1] != (own_rows,):
        return first
    total: Tensor | None = None
    for value, (expert, rows) in zip(values, plan, strict=True):
        share = weights[:, expert] if rows is None else weights[rows, expert]
        part = share.view(-1, *[1] * (value.ndim - 1)) * value
        if rows is not None:
            part = part.new_zeros((len(weights), *part.shape[1:])).index_copy(0, rows, part)
        total = part if total is None else total + part
    return total


def _l1(scores: Tensor, shares: Tensor, selected: Tensor) -> Tensor:
    return scores.mean()


def _load_balance(scores: Tensor, shares: Tensor, selected: Tensor) -> Tensor:
    number = scores.shape[1]
    return -(number * (scores.mean(dim=0) + 1e-8)).log().mean() / number


def _entropy(scores: Tensor, shares: Tensor, selected: Tensor) -> Tensor:
    return (shares * (shares + 1e-8).log()).sum(dim=1).mean()


def _importance(scores: Tensor, shares: Tensor, selected: Tensor) -> Tensor:
    total = shares.sum(dim=0)
    return total.var(correction=0) / (total.mean() ** 2 + 1e-10)


def _load(scores: Tensor, shares: Tensor, selected: Tensor) -> Tensor:
    return scores.shape[1] * (selected * shares.mean(dim=0)).sum()


# Each from scores [B, E], shares [B, E] and the share [E] of rows that selected an expert.
AUXILIARY: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "l1": _l1, "load_balance": _load_balance, "entropy": _entropy, "importance": _importance, "load": _load,
}  # fmt: skip


def _check_expert(expert: Any, spec: TaskSpec, where: str) -> None:
    """Refuse what is no head, serves another kind of task or has outputs that cannot be averaged."""
    if not isinstance(expert, dict) or "name" not in expert:
        raise ConfigError(f"`{where}` must be a head with a `name`; found {expert!r}.")
    about = HEADS.entry(expert["name"], where)
    detector = expert.get("detector")  # a head around a detector is as mixable as that is
    inner = HEADS.entry(detector["name"], f"{where}.detector") if isinstance(detector, dict) else about
    if about.constant("needs_boxes") or not (about.constant("mixable") and inner.constant("mixable")):
        raise ConfigError(
            f"`{where}` is `{expert['name']}`, whose outputs cannot be averaged. Choose another head, for example unet, "
            "classifier, fcos or heatmap."
        )
    if about.constant("kind") != spec.kind:
        raise ConfigError(
            f"`{where}` is `{expert['name']}`, a {about.constant('kind')} head, but `{spec.name}` is {spec.kind}."
        )
