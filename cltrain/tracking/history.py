"""What a list of rounds says in numbers: totals, fates of versions, the transfer matrix, cost. Pure functions."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from cltrain.evaluate import transfer as transfer_measures
from cltrain.records import Json, Round

Fate = Literal["champion", "promoted", "accepted", "rejected"]
METRICS = {  # name: (label, whether higher is better)
    "log_loss": ("log loss", False),
    "rmse": ("RMSE", False),
    "mae": ("MAE", False),
    "auc": ("AUC", True),
    "pr_auc": ("PR AUC", True),
    "accuracy": ("accuracy", True),
    "f1": ("F1", True),
    "r2": ("R²", True),
    "brier": ("Brier score", False),
    "ece": ("calibration error", False),
}
_SECRET = re.compile(r"(^|_)(token|password|passwd|secret|api_?key|credentials?)$", re.IGNORECASE)
_USERINFO = re.compile(r"(://[^/@:\s]*):[^/@\s]*@")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A version where it was made: `fate` is champion (now), promoted (once served), accepted (passed the gate, did
    not go to traffic) or rejected; `data` is its entry in `Round.versions`."""

    version: str
    round: Round
    fate: Fate
    data: Json

    @property
    def kind(self) -> str:
        return str(self.data.get("kind") or "stateful")

    @property
    def reasons(self) -> tuple[str, ...]:
        return tuple(str(reason) for reason in self.data.get("reasons") or ())


def entries(rounds: Sequence[Round]) -> list[Entry]:
    """All versions, oldest first."""
    served = {r.champion for r in rounds}
    served |= {
        v
        for r in rounds
        if r.roll_out and r.roll_out.status == "promoted"
        for v in (r.roll_out.version, r.roll_out.previous)
    }
    now = rounds[-1].champion if rounds else None

    def fate(item: Json) -> Fate:
        if item["version"] == now:
            return "champion"
        if item["version"] in served:
            return "promoted"
        return "accepted" if item.get("accepted") else "rejected"

    return [
        Entry(version=str(item["version"]), round=r, fate=fate(item), data=item) for r in rounds for item in r.versions
    ]


def overall(parts: Iterable[Mapping[str, Any]]) -> Json:
    """Metrics of all windows together: means over rows, the RMSE from the mean square. The AUC and R² are not
    means of this kind, so what is given is the mean over windows weighted by rows.

    >>> overall([{"log_loss": 0.5, "rows": 1}, {"log_loss": 0.1, "rows": 3}, {}])
    {'rows': 4, 'log_loss': 0.2}
    """
    known = [p for p in parts if p.get("rows")]
    result: Json = {"rows": sum(p["rows"] for p in known)}
    for name in dict.fromkeys(name for p in known for name in p if name != "rows"):
        pairs = [(v, p["rows"]) for p in known if (v := number(p.get(name))) is not None]
        weight = sum(n for _, n in pairs)
        if not weight:
            result[name] = None
        elif name == "rmse":
            result[name] = math.sqrt(sum(v * v * n for v, n in pairs) / weight)
        else:
            result[name] = sum(v * n for v, n in pairs) / weight
    return result


def metric_names(rounds: Sequence[Round], first: str) -> list[str]:
    """Metrics that some window has a number for, `first` first, the others in the order of `METRICS`."""
    seen = {
        name
        for r in rounds
        for name, value in r.observation.prequential.items()
        if name not in ("rows", "squared_error") and number(value) is not None
    }
    order = [first, *METRICS, *sorted(seen)]
    return [name for name in dict.fromkeys(order) if name in seen]


@dataclass(frozen=True, kw_only=True)
class Transfer:
    """Loss of promoted versions on held-out rows of windows; None where nothing was measured.

    mean: of the champion over the windows it was measured on.
    backward: mean over earlier windows k of (loss on k of the first promoted version measured on it − loss on k of
    the champion): above 0, later updates made old windows better (Lopez-Paz and Ranzato 2017, with losses).
    forgetting: mean over earlier windows k of (loss on k of the champion − least loss on k of any promoted version
    before it): above 0, something was lost (Chaudhry et al. 2018, with losses).
    """

    champion: str | None = None
    windows: int = 0
    mean: float | None = None
    backward: float | None = None
    forgetting: float | None = None


def losses(entry: Entry) -> dict[int, float]:
    """Window to loss of a version's row of the transfer matrix."""
    return losses_of(entry.data.get("transfer") or ())


def measured(cells: Iterable[Json]) -> list[Json]:
    """The cells that have a loss."""
    return [{"rows": 1, **c} for c in cells if number(c.get("loss")) is not None]


def losses_of(cells: Iterable[Json]) -> dict[int, float]:
    """Window to loss of a row of the transfer matrix."""
    return {int(c["window"]): float(c["loss"]) for c in measured(cells)}


def transfer(found: Sequence[Entry]) -> Transfer:
    served = [e for e in found if e.fate in ("champion", "promoted")]
    last = next((i for i, e in enumerate(served) if e.fate == "champion"), len(served) - 1)
    if last < 0:
        return Transfer()
    cards = [(e.version, measured(e.data.get("transfer") or ())) for e in served[: last + 1]]
    of = transfer_measures.Transfer.of(cards).summary()
    return Transfer(
        champion=served[last].version,
        windows=len(cards[-1][1]),
        mean=of["average"],
        backward=of["backward"],
        forgetting=of["forgetting"],
    )


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Row visits so far, at the end of a round."""

    round: Round
    trained: int
    from_scratch: int
    seconds: float


def cost(rounds: Sequence[Round], epochs: int) -> list[Cost]:
    """Row visits measured, and those that a training from scratch at every update would have taken: at each round with
    a version the rows of the whole history up to it times `epochs`. That is arithmetic: no such training took place.

    The history is that of the champion of the moment and the rows that were fresh to it, so rows that were offered
    again after a rejection count once.
    """
    seen: dict[str | None, int] = {None: 0}
    points, trained, scratch, seconds = [], 0, 0, 0.0
    for r in rounds:
        history = 0
        for item in r.versions:
            history = seen.get(item.get("parent") or item.get("compared_to"), 0) + r.observation.fresh.rows
            seen[item["version"]] = history
            trained += int(item.get("rows_trained") or 0)
            seconds += float(item.get("seconds") or 0.0)
        scratch += history * epochs
        points.append(Cost(round=r, trained=trained, from_scratch=scratch, seconds=seconds))
    return points


def stateless_epochs(settings: Mapping[str, Any]) -> int:
    """`train.stateless.epochs`, 1 where the settings do not say."""
    train = settings.get("train")
    stateless = train.get("stateless") if isinstance(train, Mapping) else None
    epochs = number(stateless.get("epochs")) if isinstance(stateless, Mapping) else None
    return max(1, int(epochs or 1))


def served_requests(r: Round) -> tuple[int | None, int | None]:
    """Requests sent and failed during the round; None where nothing served."""
    sent, failed = number(r.served.get("sent")), number(r.served.get("failed"))
    return (None if sent is None else int(sent)), (None if failed is None else int(failed))


def number(value: Any) -> float | None:
    """The finite number that `value` is, or None."""
    if value is None or isinstance(value, bool | str):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except TypeError:
        return None


def finite(value: Any) -> Any:
    """JSON without NaN and infinities, which become None; scalars of numpy become Python's."""
    if isinstance(value, dict):
        return {str(k): finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int):
        return value
    return finite(value.item()) if hasattr(value, "item") else str(value)


def redacted(value: Any, name: str = "") -> Any:
    """Settings that may be shown to others: values of keys that sound like secrets and passwords in URLs are hidden.

    >>> redacted({"admin_token": "x", "store": {"url": "postgresql://me:pw@host/db"}})
    {'admin_token': '…', 'store': {'url': 'postgresql://me:…@host/db'}}
    """
    if isinstance(value, Mapping):
        return {str(k): redacted(v, str(k)) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [redacted(v, name) for v in value]
    if isinstance(value, str) and value:
        return "…" if _SECRET.search(name) else _USERINFO.sub(r"\1:…@", value)
    return value
