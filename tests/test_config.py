"""Settings: what is wrong is named by its dotted key, with the fix."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import pytest

from cltrain.config import build, defaults_of, locate
from cltrain.errors import ConfigError
from cltrain.memory import Reservoir
from cltrain.methods import EWC, Combined, Replay


class Speaks(Protocol):
    def speak(self) -> str: ...


@dataclass(frozen=True, kw_only=True)
class Inner:
    size: int = 1

    def __post_init__(self) -> None:
        if self.size < 0:
            raise ConfigError(f"part.size must be 0 or more, not {self.size}")

    def speak(self) -> str:
        return "moo"


@dataclass(frozen=True, kw_only=True)
class Part:
    needed: str
    rate: float = 0.5
    count: int = 3
    on: bool = True
    mode: Literal["fast", "slow"] = "fast"
    limit: int | None = None
    names: tuple[str, ...] = ("a", "b")
    pair: tuple[int, float] = (1, 2.0)
    spans: Sequence[float] = (1.0,)
    ranges: Mapping[str, float] = field(default_factory=dict)
    inner: Inner = field(default_factory=Inner)
    animal: Speaks | None = None
    anything: Any = None
    hidden: int = field(default=0, init=False)


def part(**settings: Any) -> Any:
    return build({"_target_": f"{__name__}.Part", "needed": "x", **settings}, "part")


def inner(**settings: Any) -> dict[str, Any]:
    return {"_target_": f"{__name__}.Inner", **settings}


def test_parts_within_parts() -> None:
    made = part(inner=inner(size=7), animal=inner(), names=["c"], pair=[1, 2], ranges={"p": 1})
    assert made.inner == Inner(size=7)
    assert made.animal.speak() == "moo"
    assert made.names == ("c",)
    assert made.pair == (1, 2)
    assert part(limit=None).limit is None
    assert part(limit=4).limit == 4
    assert part(rate=1).rate == 1


def test_plain_values_stay() -> None:
    assert build({"a": [1, {"b": None}]}) == {"a": [1, {"b": None}]}
    assert build([inner()]) == [Inner()]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cuont": 1}, "part.cuont: Part has no such setting; did you mean part.count?"),
        ({"zzz": 1}, "part.zzz: Part has no such setting; it has: needed, rate, count"),
        ({"hidden": 1}, "part.hidden: Part has no such setting"),
        ({"rate": "fast"}, "part.rate='fast' must be a number"),
        ({"rate": True}, "part.rate=True must be a number"),
        ({"count": 1.5}, "part.count=1.5 must be a whole number"),
        ({"count": None}, "part.count=None must be a whole number"),
        ({"on": 1}, "part.on=1 must be true or false"),
        ({"needed": 3}, "part.needed=3 must be text"),
        ({"needed": "???"}, "part.needed is not set: pass part.needed=VALUE"),
        ({"mode": "mid"}, "part.mode='mid' must be one of fast, slow"),
        ({"limit": "many"}, "part.limit='many' must be a whole number or null"),
        ({"names": "a"}, "part.names='a' must be a list of text"),
        ({"names": [1]}, "part.names=[1] must be a list of text"),
        ({"pair": [1]}, "part.pair=[1] must be a list of"),
        ({"spans": [None]}, "part.spans=[None] must be a list of a number"),
        ({"ranges": {"p": "x"}}, "must be a mapping"),
        ({"inner": 5}, "part.inner=5 must be a Inner, which is settings with a _target_"),
        ({"inner": {"size": 5}}, "must be a Inner, which is settings with a _target_"),
        ({"animal": 5}, "part.animal=5 must be a Speaks"),
        ({"inner": {"_target_": f"{__name__}.Inner", "size": -1}}, "part.inner.size must be 0 or more, not -1"),
        ({"inner": {"_target_": f"{__name__}.Inner", "sise": 1}}, "part.inner.sise: Inner has no such setting"),
        ({"inner": {"_target_": "nowhere.Inner"}}, "part.inner._target_=nowhere.Inner cannot be imported"),
        ({"anything": [{"_target_": "???"}]}, "part.anything[0]._target_ is not set: pass"),
    ],
)
def test_what_is_wrong_is_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        part(**settings)
    assert message in str(caught.value)


def test_what_is_missing_is_named() -> None:
    with pytest.raises(ConfigError, match=r"^part\.needed is not set: pass part\.needed=VALUE$"):
        build({"_target_": f"{__name__}.Part"}, "part")
    with pytest.raises(ConfigError, match=r"^needed is not set"):
        build({"_target_": f"{__name__}.Part"})


def test_a_range_is_named_where_it_is() -> None:
    settings = {
        "_target_": "cltrain.methods.Combined",
        "parts": {"mine": {"_target_": "cltrain.methods.EWC", "strength": -1.0}},
    }
    with pytest.raises(ConfigError, match=r"^method\.parts\.mine\.strength must be between"):
        build(settings, "method")
    training = {"_target_": "cltrain.train.settings.Training", "learning_rate": 0.0}
    with pytest.raises(ConfigError, match=r"^train\.stateful\.learning_rate must be above 0"):
        build(training, "train.stateful")


def test_what_is_not_a_dataclass_is_called() -> None:
    assert build({"_target_": "builtins.dict", "a": 1}) == {"a": 1}
    with pytest.raises(ConfigError, match=r"^x: .*unexpected keyword"):
        build({"_target_": "fractions.Fraction", "a": 1}, "x")
    for target in (None, "", "???"):
        with pytest.raises(ConfigError, match=r"model\._target_ is not set"):
            locate(target, "model._target_")
    with pytest.raises(ConfigError, match="cannot be imported"):
        locate("plain", "x")


def test_defaults() -> None:
    assert defaults_of(f"{__name__}.Part") == {
        "needed": "???", "rate": 0.5, "count": 3, "on": True, "mode": "fast", "limit": None, "names": ["a", "b"],
        "pair": [1, 2.0], "spans": [1.0], "ranges": {}, "animal": None, "anything": None,
    }  # fmt: skip
    assert defaults_of("fractions.Fraction") == {}


def test_a_method_of_two_parts() -> None:
    settings = {
        "_target_": "cltrain.methods.Combined",
        "parts": {
            "ewc": {"_target_": "cltrain.methods.EWC", "strength": 3},
            "replay": {
                "_target_": "cltrain.methods.Replay",
                "memory": {"_target_": "cltrain.memory.Reservoir", "capacity_rows": 5},
            },
        },
    }
    made = build(settings, "method")
    assert made == Combined(parts={"ewc": EWC(strength=3), "replay": Replay(memory=Reservoir(capacity_rows=5))})
